"""Panoptic predictions in COCO's format, written to one JSON and one PNG per image."""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from possam.datasets.format import ANNOTATIONS, PANOPTIC, ConvertedDataset, ImageRecord
from possam.datasets.pixels import areas, encode_ids, write_png
from possam.evaluation.panoptic import PanopticResult
from possam.runtime.errors import PossamError
from possam.runtime.files import read_json, write_json

PREDICTIONS = "predictions.json"


class PredictionWriter:
    """Writes ``predictions/*.png`` into a directory; :meth:`close` writes ``predictions.json``."""

    def __init__(self, directory: Path, dataset: ConvertedDataset) -> None:
        self.json = directory / PREDICTIONS
        self.folder = self.json.with_suffix("")
        self._dataset = dataset
        self._annotations: dict[int, dict[str, Any]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        record: ImageRecord,
        ids: NDArray[np.integer],
        segments: Mapping[int, int],
        scores: Mapping[int, float] | None = None,
    ) -> None:
        """Write the PNG of one image; ``segments`` maps each id in ``ids`` (H,W) to its class."""
        name = f"{record.panoptic.stem}.png"
        write_png(self.folder / name, encode_ids(ids))
        area = areas(ids)
        self._annotations[record.id] = {
            "image_id": record.id,
            "file_name": name,
            "segments_info": [
                {"id": key, "category_id": category, "area": area[key], "iscrowd": 0}
                | ({"score": scores[key]} if scores is not None else {})
                for key, category in segments.items()
            ],
        }

    def close(self) -> tuple[Path, Path]:
        """Write the JSON; returns its path and the folder of PNGs."""
        records = self._dataset.images
        content = {
            "images": [{"id": r.id, "width": r.width, "height": r.height} for r in records],
            "annotations": [self._annotations[record.id] for record in records],
            "categories": [
                {"id": c.index, "name": c.names[0], "isthing": int(c.is_thing)}
                for c in self._dataset.categories
            ],
        }
        write_json(self.json, content, indent=None)
        return self.json, self.folder


def check_panopticapi(
    dataset: ConvertedDataset, *, json: Path, folder: Path, result: PanopticResult
) -> dict[str, float]:
    """Score the written predictions with panopticapi; ``result`` must agree to the last digit.

    Returns ``panopticapi_pq``, ``panopticapi_sq``, ``panopticapi_rq`` in percent.

    Raises:
        PossamError: there is nothing to score, or two numbers differ (both are named).
    """
    from panopticapi.evaluation import pq_compute_single_core

    # In one process: sums of IoUs would round differently for every number of cores.
    target = read_json(dataset.directory / ANNOTATIONS)
    own = {record.upstream_id: record.id for record in dataset.images}
    sides = [
        {own.get(item["image_id"], item["image_id"]): item for item in content["annotations"]}
        for content in (target, read_json(json))
    ]
    pairs = [tuple(side[record.id] for side in sides) for record in dataset.images]
    categories = {category["id"]: category for category in target["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        totals = pq_compute_single_core(
            0, pairs, os.fspath(dataset.directory / PANOPTIC), os.fspath(folder), categories
        )
    if not result.classes:
        raise PossamError(f"{dataset.directory}: no segment in ground truth or prediction to score")
    average, _ = totals.pq_average(categories, isthing=None)
    theirs = {name: float(average[name]) for name in ("pq", "sq", "rq")}
    for name, value in theirs.items():
        ours = getattr(result, name)
        if ours != value:
            raise PossamError(
                f"{dataset.directory}: {name.upper()} {100 * ours!r} differs from panopticapi's "
                f"{100 * value!r}; the data set's annotations.json (areas?) or the evaluation is "
                "wrong: validate the data set"
            )
    return {f"panopticapi_{name}": 100.0 * value for name, value in theirs.items()}
