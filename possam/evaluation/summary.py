"""``evaluation.json``: metrics, intervals, results per class, and the protocol."""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from possam.datasets.format import Category, ConvertedDataset
from possam.evaluation.instance import InstanceEvaluator
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.panoptic import PanopticEvaluator
from possam.evaluation.predictions import check_panopticapi
from possam.evaluation.semantic import SemanticEvaluator
from possam.evaluation.statistics import (
    IMAGE_FILE,
    ImageStatistics,
    bootstrap_intervals,
    class_subsets,
    defined,
    defined_intervals,
)
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, write_json

RESULT = "evaluation.json"
SECONDS = "seconds"
"""Key in the protocol of a timed variant: the seconds that each image took."""

PROTOCOL = {
    "pq": "PQ, SQ, RQ as panopticapi: averaged over classes with a segment in ground truth "
    "or prediction; unmatched predictions mostly on void or crowd are ignored",
    "pq_class_agnostic": "all classes merged into one before matching",
    "map": "pycocotools mask AP, IoU 0.50 to 0.95, things only, at most 100 detections per image "
    "and class",
    "miou": "mean over classes present in the ground truth; void pixels ignored",
    "miou_union": "mean over classes present in ground truth or prediction; void pixels ignored",
}
"""How each metric is computed."""


@dataclass
class Evaluators:
    """The evaluators of one pass over a data set; ``None``: not measured."""

    panoptic: PanopticEvaluator | None
    semantic: SemanticEvaluator | None
    instances: InstanceEvaluator | None

    @classmethod
    def of(
        cls,
        dataset: ConvertedDataset,
        metrics: Collection[str],
        *,
        instances: dict[str, Any] | None = None,
    ) -> "Evaluators":
        """Empty evaluators of ``metrics``, and of AP if the data set's ``instances`` are given."""
        classes, image_ids = len(dataset.categories), [record.id for record in dataset.images]
        own = None
        if instances is not None:
            own = InstanceEvaluator(instances, image_ids=image_ids, num_classes=classes)
        return cls(
            panoptic=PanopticEvaluator(dataset.categories) if "panoptic" in metrics else None,
            semantic=SemanticEvaluator(classes) if "semantic" in metrics else None,
            instances=own,
        )

    def extend(self, other: "Evaluators") -> None:
        """Add the images that ``other`` counted; instances are not added."""
        for mine, theirs in ((self.panoptic, other.panoptic), (self.semantic, other.semantic)):
            if mine is not None and theirs is not None:
                mine.extend(theirs)  # type: ignore[arg-type]

    def finish(
        self, dataset: ConvertedDataset, seen: Sequence[bool]
    ) -> tuple[ImageStatistics, dict[str, float]]:
        """Per-image statistics and the metrics in percent, over images in the data set's order."""
        image_ids = [record.id for record in dataset.images]
        is_thing = [category.is_thing for category in dataset.categories]
        metrics: dict[str, float] = {}
        counts = agnostic = matches = semantic = None
        if self.panoptic is not None:
            self.panoptic.arrange(image_ids)
            counts, agnostic = self.panoptic.counts(), self.panoptic.class_agnostic_counts()
            every = self.panoptic.result()
            metrics |= {"pq": every.pq, "sq": every.sq, "rq": every.rq}
            for name, classes in class_subsets(is_thing, seen).items():
                metrics[name] = self.panoptic.result(classes).pq
            metrics["pq_class_agnostic"] = self.panoptic.class_agnostic().pq
        if self.instances is not None:
            matches = self.instances.finish()
            metrics["map"] = float(matches.average_precision(np.ones((1, len(image_ids))))[0])
        if self.semantic is not None:
            self.semantic.arrange(image_ids)
            semantic, result = self.semantic.counts(), self.semantic.result()
            metrics |= {"miou": result.miou, "miou_union": result.miou_union}
        statistics = ImageStatistics(
            tuple(image_ids), tuple(is_thing), tuple(seen), counts, agnostic, semantic, matches
        )
        return statistics, {name: 100.0 * value for name, value in metrics.items()}


def make_result(
    *,
    dataset: ConvertedDataset,
    evaluators: Evaluators,
    seen: Sequence[bool],
    evaluation: EvaluationOptions,
    protocol: Mapping[str, Any],
    semantic_prediction: str,
    written: tuple[Path, Path] | None,
) -> tuple[ImageStatistics, dict[str, Any]]:
    """Per-image statistics; and metrics, intervals, results per class, check and protocol.

    Both depend only on data, weights and parameters: the same call gives the same file.

    Args:
        semantic_prediction: source of the semantic labels, for the protocol.
        written: JSON and PNG folder of the same panoptic predictions, to check by panopticapi.

    Raises:
        PossamError: panopticapi computes another PQ.
    """
    bootstrap, check = evaluation.bootstrap, None
    statistics, metrics = evaluators.finish(dataset, seen)
    if written is not None and evaluators.panoptic is not None:
        json, folder = written
        result = evaluators.panoptic.result()
        check = check_panopticapi(dataset, json=json, folder=folder, result=result)
    return statistics, {
        "metrics": defined(metrics),
        "intervals": defined_intervals(bootstrap_intervals(statistics, bootstrap=bootstrap)),
        "per_class": _per_class(dataset.categories, statistics, evaluators),
        "check": check,
        "protocol": {
            **{name: text for name, text in PROTOCOL.items() if name in metrics},
            "dataset": f"{dataset.name} {dataset.split}",
            "dataset_content": dataset.manifest["content"],
            "class_names_hash": hash_json([list(names) for names in dataset.vocabulary]),
            "interval": f"{100 * bootstrap.confidence:g} % bootstrap over images (percentiles, "
            f"moved by the bootstrap's bias), {bootstrap.samples} resamples, "
            f"seed {bootstrap.seed}",
            **protocol,
            "semantic_ground_truth": "semantic PNGs of the converted data set",
            "semantic_prediction": semantic_prediction,
        },
    }


def write_result(out: Path, result: Mapping[str, Any], statistics: ImageStatistics) -> None:
    """Write the Parquet files and, last, ``evaluation.json`` into ``out``.

    Raises:
        InputError: ``out`` is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must name a folder")
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)
    statistics.save(out)
    write_json(out / RESULT, result)


def write_variants(
    out: Path, result: Mapping[str, Any], statistics: Mapping[str, ImageStatistics]
) -> None:
    """Write each variant's Parquet files into a folder of its name; last, ``evaluation.json``.

    Folders in ``out`` of variants that are not in ``statistics`` are removed.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / RESULT).unlink(missing_ok=True)
    for old in out.glob(f"*/{IMAGE_FILE}"):
        if old.parent.name not in statistics:
            shutil.rmtree(old.parent)
    for name, table in statistics.items():
        table.save(out / name)
    write_json(out / RESULT, result)


def count_parts(dataset: ConvertedDataset, seen: Sequence[bool]) -> dict[str, int]:
    """Number of images, and of classes of each kind, in an evaluation."""
    classes, known = len(dataset.categories), sum(seen)
    things = sum(category.is_thing for category in dataset.categories)
    kinds = {"things": things, "stuff": classes - things, "seen": known, "unseen": classes - known}
    return {"images": len(dataset), "classes": classes, **kinds}


def _per_class(
    categories: Sequence[Category], statistics: ImageStatistics, evaluators: Evaluators
) -> list[dict[str, Any]]:
    """One entry per class, in percent; a metric is null where the class does not occur."""
    quality = {} if evaluators.panoptic is None else evaluators.panoptic.result().per_class
    iou = {} if evaluators.semantic is None else evaluators.semantic.result().per_class
    precision: dict[int, float] = {}
    if statistics.instances is not None:
        table = statistics.instances.precision(np.ones((1, len(statistics.image_ids))))[0]
        found = np.flatnonzero(statistics.instances.targets.any(axis=0))
        precision = {int(k): float(table[..., k].mean()) for k in found}
    rows = []
    for category in categories:
        k = category.index
        row: dict[str, Any] = {"index": k, "name": category.names[0]}
        row |= {"thing": category.is_thing, "seen": statistics.seen[k]}
        if evaluators.panoptic is not None:
            for place, name in enumerate(("pq", "sq", "rq")):
                row[name] = 100.0 * quality[k][place] if k in quality else None
        if statistics.panoptic is not None:
            for name in ("tp", "fp", "fn"):
                row[name] = int(getattr(statistics.panoptic, name)[:, k].sum())
        if statistics.instances is not None and category.is_thing:
            row["ap"] = 100.0 * precision[k] if k in precision else None
        if evaluators.semantic is not None:
            row["iou"] = 100.0 * iou[k] if k in iou else None
        rows.append(row)
    return rows
