"""Score predictions of any system, without a model: COCO panoptic format, or label PNGs."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from possam.datasets.format import ConvertedDataset
from possam.datasets.pixels import class_map
from possam.errors import InputError
from possam.evaluation.panoptic import PanopticEvaluator
from possam.evaluation.predictions import (
    PredictionReader,
    check_panopticapi,
    check_size,
    read_png,
)
from possam.evaluation.semantic import SemanticEvaluator
from possam.evaluation.statistics import ImageStatistics
from possam.evaluation.summary import Evaluators, count_parts, make_result, write_result
from possam.params import EvaluationParams
from possam.progress import track

VOID_LABELS = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def score(
    *,
    dataset: ConvertedDataset,
    predictions: Path,
    evaluation: EvaluationParams,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    segmentations: Path | None = None,
    category_ids: str = "contiguous",
    seen: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Score predictions against a converted data set, and write the result where ``out`` is given.

    Args:
        out: folder for ``evaluation.json`` and per-image statistics; ``None``: nothing is written.
        identity: goes into the result as it is: ``run``, ``benchmark``, ``condition``, ...

    Other arguments and errors as :func:`measure_predictions`.

    Returns:
        What ``evaluation.json`` holds: metrics and intervals in percent, results of each class.
    """
    statistics, found = measure_predictions(
        dataset=dataset,
        predictions=predictions,
        evaluation=evaluation,
        segmentations=segmentations,
        category_ids=category_ids,
        seen=seen,
    )
    counts = count_parts(dataset, statistics.seen)
    result = {**(identity or {}), "counts": counts, **found}
    if out is not None:
        write_result(out, result, statistics)
    return result


def measure_predictions(
    *,
    dataset: ConvertedDataset,
    predictions: Path,
    evaluation: EvaluationParams,
    segmentations: Path | None = None,
    category_ids: str = "contiguous",
    seen: Sequence[bool] | None = None,
    metrics: Collection[str] = ("panoptic", "semantic"),
) -> tuple[ImageStatistics, dict[str, Any]]:
    """Per-image statistics of predictions, and their result; nothing is written.

    Args:
        predictions: a ``.json`` in COCO panoptic format (PNGs: in ``segmentations``, default
            beside the JSON, with its name without ``.json``), which gives the PQ metrics and the
            mIoU of the panoptic map; or a folder of label PNGs ``<image name>.png`` (class index,
            255 or 65535 = none; 16 bits where ids exceed 254), which gives mIoU alone.
        category_ids: ``contiguous`` if category ids (or labels) are class indices, ``upstream`` if
            they are those of the data set's publisher (then the label 0 = none, too).
        seen: flags of seen classes; default: all seen.
        metrics: of ``panoptic`` and ``semantic``, those that the ground truth allows.

    Returns:
        The statistics, and what :func:`~possam.evaluation.summary.make_result` makes of them.

    Raises:
        InputError: predictions that are missing, malformed, incomplete or of the wrong size.
    """
    flags = [True] * len(dataset.categories) if seen is None else list(seen)
    if len(flags) != len(dataset.categories):
        raise InputError(
            f"{dataset.directory}: {len(dataset.categories)} classes, but {len(flags)} flags of "
            "seen classes; give one a class"
        )
    semantic = SemanticEvaluator(len(dataset.categories)) if "semantic" in metrics else None
    check = None
    if predictions.is_dir():
        if segmentations is not None:
            raise InputError(
                f"{predictions}: a folder of label PNGs needs no folder of segmentations; "
                "for panoptic predictions name the JSON file"
            )
        if semantic is None:
            raise InputError(f"{predictions}: label PNGs give mIoU alone, which is not measured")
        evaluators = Evaluators(panoptic=None, semantic=semantic, instances=None)
        _score_labels(dataset, predictions, semantic, category_ids=category_ids)
        source = "label PNGs"
    else:
        panoptic = PanopticEvaluator(dataset.categories) if "panoptic" in metrics else None
        evaluators = Evaluators(panoptic=panoptic, semantic=semantic, instances=None)
        reader = PredictionReader(
            predictions, dataset, folder=segmentations, category_ids=category_ids
        )
        _score_panoptic(dataset, reader, panoptic, semantic)
        source = "panoptic map"
    statistics, values = evaluators.finish(dataset, flags)
    if evaluators.panoptic is not None and evaluation.check_panopticapi:
        check = _check(dataset, predictions, reader, category_ids, evaluators.panoptic)
    found = make_result(
        dataset=dataset,
        statistics=statistics,
        metrics=values,
        evaluators=evaluators,
        evaluation=evaluation,
        protocol={
            "predictions": predictions.name,
            "semantic_ground_truth": "semantic PNGs of the converted data set",
            "semantic_prediction": source,
        },
        check=check,
    )
    return statistics, found


def _check(
    dataset: ConvertedDataset,
    predictions: Path,
    reader: PredictionReader,
    category_ids: str,
    panoptic: PanopticEvaluator,
) -> dict[str, float] | None:
    """panopticapi reads category ids as they stand, so it can only check contiguous ones."""
    if category_ids != "contiguous":
        return None
    return check_panopticapi(
        dataset, json=predictions, folder=reader.folder, result=panoptic.result()
    )


def _score_panoptic(
    dataset: ConvertedDataset,
    reader: PredictionReader,
    panoptic: PanopticEvaluator | None,
    semantic: SemanticEvaluator | None,
) -> None:
    positions = range(len(dataset))
    for position in track(positions, total=len(dataset), label="score", unit="images"):
        record = dataset.images[position]
        ids, segments = reader.read(record)
        if panoptic is not None:
            truth = {s.id: (s.category, bool(s.is_crowd)) for s in record.segments}
            panoptic.update(record.id, ids, segments, dataset.panoptic(position), truth)
        if semantic is not None:
            semantic.update(record.id, class_map(ids, segments), dataset.semantic(position))


def _score_labels(
    dataset: ConvertedDataset, folder: Path, semantic: SemanticEvaluator, *, category_ids: str
) -> None:
    if not any(folder.glob("*.png")):
        raise InputError(
            f"{folder}: no PNG in this folder; for panoptic predictions name the JSON file"
        )
    positions = range(len(dataset))
    for position in track(positions, total=len(dataset), label="score", unit="images"):
        record = dataset.images[position]
        path = folder / f"{Path(record.file).stem}.png"
        stored = read_png(path)
        if stored.ndim != 2 or stored.dtype not in VOID_LABELS:
            raise InputError(
                f"{path}: a single-channel PNG of 8 or 16 bits with class indices is expected, "
                f"not {stored.dtype} with {stored.ndim} dimensions"
            )
        check_size(path, stored, record)
        labels = _label_indices(path, stored, dataset, category_ids)
        semantic.update(record.id, labels, dataset.semantic(position))


def _label_indices(
    path: Path, stored: NDArray[np.integer], dataset: ConvertedDataset, category_ids: str
) -> NDArray[np.int64]:
    """Class indices (H,W) of a label PNG, -1 where it names no class."""
    none = {int(VOID_LABELS[stored.dtype])}
    if category_ids == "upstream":
        index_of = {category.upstream_id: category.index for category in dataset.categories}
        none.add(0)
    else:
        index_of = {category.index: category.index for category in dataset.categories}
    if stored.dtype == np.uint8 and max(index_of) >= VOID_LABELS[stored.dtype]:
        raise InputError(
            f"{path}: 8 bits per pixel, but {category_ids} ids of {dataset.name} go up to "
            f"{max(index_of)}; write label PNGs of 16 bits (65535 = none)"
        )
    values, inverse = np.unique(stored, return_inverse=True)
    unknown = [v for v in values.tolist() if v not in index_of and v not in none]
    if unknown:
        raise InputError(
            f"{path}: labels {unknown[:5]}: valid are the {category_ids} ids "
            f"{min(index_of)}..{max(index_of)} of the data set's {len(index_of)} classes, and "
            f"{' or '.join(map(str, sorted(none)))} for none"
        )
    found = np.array([index_of.get(v, -1) for v in values.tolist()], np.int64)
    return found[inverse.reshape(stored.shape)]
