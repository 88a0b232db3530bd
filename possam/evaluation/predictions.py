"""Panoptic predictions in COCO's format: one JSON, one PNG an image, ids as R + 256 G + 65536 B."""

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from possam.datasets.format import (
    ANNOTATIONS,
    PANOPTIC,
    Category,
    ConvertedDataset,
    ImageRecord,
)
from possam.datasets.pixels import UNREADABLE, areas, decode_ids, encode_ids, write_png
from possam.datasets.png import decode_map
from possam.errors import InputError, PossamError
from possam.evaluation.panoptic import PanopticResult
from possam.files import read_json, write_json

PREDICTIONS = "predictions.json"
CATEGORY_IDS = ("contiguous", "upstream")


class PredictionWriter:
    """Writes ``predictions.json`` and ``predictions/*.png`` into a directory.

    The JSON is written by :meth:`close`, in the order of the data set.
    """

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

    def close(self) -> None:
        """Write the JSON."""
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


class PredictionReader:
    """Reads panoptic predictions of any origin and checks them against a data set.

    Args:
        json: the predictions' JSON file.
        folder: of its PNGs; default: beside the JSON, with its name without ``.json``.
        category_ids: whether ``category_id`` is the data set's own index (``contiguous``) or the
            id of the data set's upstream release (``upstream``).

    Raises:
        InputError: anything missing, malformed or inconsistent, with file, field and remedy.
    """

    def __init__(
        self, json: Path, dataset: ConvertedDataset, *, folder: Path | None, category_ids: str
    ) -> None:
        self.json, self._dataset = json, dataset
        if category_ids not in CATEGORY_IDS:
            raise InputError(
                f"category_ids: unknown {category_ids!r}; valid choices: {', '.join(CATEGORY_IDS)}"
            )
        content = read_json(json)
        self.folder = folder if folder is not None else json.with_suffix("")
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder; name the folder of predicted PNGs")
        if not isinstance(content, dict):
            raise InputError(f"{json}: top level: an object is expected (COCO panoptic format)")
        for key in ("annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise InputError(
                    f"{json}: {key}: missing or not a list; COCO panoptic format is expected"
                )
        self._classes = self._category_map(content["categories"], category_ids)
        self._annotations: dict[int, dict[str, Any]] = {}
        for number, annotation in enumerate(content["annotations"]):
            where = f"{json}: annotations[{number}]"
            for key, kind in (("image_id", int), ("file_name", str), ("segments_info", list)):
                if not isinstance(annotation, dict) or not isinstance(annotation.get(key), kind):
                    raise InputError(
                        f"{where}: {key}: missing or of a wrong type; see COCO's panoptic format"
                    )
            image_id = annotation["image_id"]
            if image_id in self._annotations:
                raise InputError(
                    f"{where}: image_id: {image_id} occurs twice; keep one prediction an image"
                )
            self._annotations[image_id] = annotation
        missing = [record.id for record in dataset.images if record.id not in self._annotations]
        if missing:
            raise InputError(
                f"{json}: annotations: {len(missing)} of {len(dataset)} images have no prediction "
                f"(image_id {missing[0]} is the first); predict all images of the data set"
            )
        extra = sorted(set(self._annotations) - {record.id for record in dataset.images})
        if extra:
            raise InputError(
                f"{json}: annotations: image_id {extra[0]} and {len(extra) - 1} others are not in "
                f"{dataset.name} {dataset.split}; choose predictions of this split"
            )

    def _category_map(self, categories: list[Any], category_ids: str) -> dict[int, int]:
        """Valid ``category_id`` -> class index."""
        known: dict[int, Category] = {
            (c.index if category_ids == "contiguous" else c.upstream_id): c
            for c in self._dataset.categories
        }
        result = {}
        for number, category in enumerate(categories):
            where = f"{self.json}: categories[{number}]"
            if not isinstance(category, dict) or not isinstance(category.get("id"), int):
                raise InputError(
                    f"{where}: id: missing or not a whole number; see COCO's panoptic format"
                )
            if category["id"] not in known:
                raise InputError(
                    f"{where}: id: {category['id']!r} is no {category_ids} category id of "
                    f"{self._dataset.name}; {_other(category_ids)}"
                )
            ours = known[category["id"]]
            name = str(category.get("name", ours.names[0])).strip().lower()
            names = [synonym.strip().lower() for synonym in ours.names]
            if category_ids == "contiguous" and name not in names:
                raise InputError(
                    f"{where}: name: {name!r}, but class {ours.index} of {self._dataset.name} is "
                    f"{ours.names[0]!r}; {_other(category_ids)}"
                )
            result[category["id"]] = ours.index
        return result

    def read(self, record: ImageRecord) -> tuple[NDArray[np.int32], dict[int, int]]:
        """Ids (H,W) and id -> class index of one image."""
        annotation = self._annotations[record.id]
        segments: dict[int, int] = {}
        where = f"{self.json}: image_id {record.id}: segments_info"
        for number, segment in enumerate(annotation["segments_info"]):
            for key in ("id", "category_id"):
                if not isinstance(segment, dict) or not isinstance(segment.get(key), int):
                    raise InputError(
                        f"{where}[{number}]: {key}: missing or not a whole number; "
                        "see COCO's panoptic format"
                    )
            if segment["id"] in segments:
                raise InputError(
                    f"{where}[{number}]: id: {segment['id']} occurs twice; ids must be unique"
                )
            if segment["category_id"] not in self._classes:
                raise InputError(
                    f"{where}[{number}]: category_id: {segment['category_id']} is unknown; "
                    f"add it to 'categories' or correct it"
                )
            segments[segment["id"]] = self._classes[segment["category_id"]]
        path = self.folder / annotation["file_name"]
        colours = read_png(path)
        if colours.ndim != 3 or colours.shape[2] < 3 or colours.dtype != np.uint8:
            raise InputError(f"{path}: an 8-bit RGB PNG is expected (id = R + 256 G + 65536 B)")
        check_size(path, colours, record)
        ids = decode_ids(colours[..., :3], path)
        drawn = areas(ids).keys() - {0}
        if drawn != set(segments):
            raise InputError(
                f"{path}: ids in the PNG and in {self.json.name} differ: only in the PNG "
                f"{sorted(drawn - set(segments))[:5]}, only in segments_info "
                f"{sorted(set(segments) - drawn)[:5]}; list each drawn segment once, 0 is void"
            )
        return ids, segments


def _other(category_ids: str) -> str:
    other = "upstream" if category_ids == "contiguous" else "contiguous"
    return f"if the ids are {other} ids, choose category_ids={other!r}"


def read_png(path: Path) -> NDArray[Any]:
    """Pixels of an image file, as stored.

    Raises:
        InputError: no such file, or not an image.
    """
    try:
        if (quick := decode_map(path.read_bytes())) is not None:
            return quick
        with Image.open(path) as image:
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; predict every image of the data set") from error
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable image ({error}); write it again") from error


def check_size(path: Path, pixels: NDArray[Any], record: ImageRecord) -> None:
    """Refuse pixels (H,W,...) of another size than the image's."""
    if pixels.shape[:2] != (record.height, record.width):
        raise InputError(
            f"{path}: size: {pixels.shape[1]} x {pixels.shape[0]}, but image {record.id} is "
            f"{record.width} x {record.height} (width x height); resize it (nearest)"
        )


def check_panopticapi(
    dataset: ConvertedDataset, *, json: Path, folder: Path, result: PanopticResult
) -> dict[str, float]:
    """Score the written predictions with panopticapi and compare, to the last digit.

    Returns:
        ``panopticapi_pq``, ``panopticapi_sq``, ``panopticapi_rq`` in percent.

    Raises:
        PossamError: the two differ; names both numbers.
    """
    from panopticapi.evaluation import pq_compute_single_core

    # One process, as sums of IoUs would round differently for every number of cores.
    target = read_json(dataset.directory / ANNOTATIONS)
    sides = [
        {item["image_id"]: item for item in content["annotations"]}
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
    theirs, _ = totals.pq_average(categories, isthing=None)
    for name in ("pq", "sq", "rq"):
        ours = getattr(result, name)
        if ours != theirs[name]:
            raise PossamError(
                f"{dataset.directory}: {name.upper()} {100 * ours!r} differs from panopticapi's "
                f"{100 * float(theirs[name])!r}; the data set's annotations.json (areas?) or the "
                "evaluation is wrong: validate the data set"
            )
    return {f"panopticapi_{name}": 100.0 * float(theirs[name]) for name in ("pq", "sq", "rq")}
