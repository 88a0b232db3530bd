"""Score predictions of any system, without a model: COCO panoptic format, or label PNGs."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from possam.datasets.format import ConvertedDataset, ImageRecord
from possam.datasets.pixels import void_value
from possam.evaluation.instance_results import InstanceResults, is_instance_results
from possam.evaluation.numbering import LOW, NumberingError, suggest
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.reader import (
    LabelFormat,
    PanopticFormat,
    PredictionReader,
    by_id,
    check_category_ids,
)
from possam.evaluation.run_lengths import RunLengths, count_shared_pixels, encode_array, encode_file
from possam.evaluation.saved_maps import SavedMaps, is_saved_map
from possam.evaluation.statistics import ImageStatistics
from possam.evaluation.summary import Evaluators, count_parts, make_result, write_result
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.memory import no_collection
from possam.runtime.pools import in_chunks
from possam.runtime.progress import Progress

NOTES = "notes"
"""Key in the protocol: what to know about the predictions, a list of sentences."""
_CHUNK = 16
_PRELOAD = "possam.evaluation.preload"


def score(
    *,
    dataset: ConvertedDataset,
    predictions: Path,
    evaluation: EvaluationOptions,
    out: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    segmentations: Path | None = None,
    category_ids: str = "contiguous",
    seen: Sequence[bool] | None = None,
    subset: bool = False,
    workers: int = 1,
) -> dict[str, Any]:
    """Score predictions against a converted data set; write the result if ``out`` is given.

    Returns the content of ``evaluation.json``; other arguments and errors as
    :func:`measure_predictions`.

    Args:
        out: folder for ``evaluation.json`` and per-image statistics; ``None``: nothing is written.
        identity: copied into the result: ``run``, ``benchmark``, ``condition``, ...
    """
    statistics, found = measure_predictions(
        dataset=dataset,
        predictions=predictions,
        evaluation=evaluation,
        segmentations=segmentations,
        category_ids=category_ids,
        seen=seen,
        subset=subset,
        workers=workers,
    )
    counts = count_parts(dataset, statistics.seen) | {"images": len(statistics.image_ids)}
    result = {**(identity or {}), "counts": counts, **found}
    if out is not None:
        write_result(out, result, statistics)
    return result


def measure_predictions(
    *,
    dataset: ConvertedDataset,
    predictions: Path,
    evaluation: EvaluationOptions,
    segmentations: Path | None = None,
    category_ids: str = "contiguous",
    seen: Sequence[bool] | None = None,
    metrics: Collection[str] = ("panoptic", "semantic"),
    subset: bool = False,
    workers: int = 1,
) -> tuple[ImageStatistics, dict[str, Any]]:
    """Per-image statistics of predictions, and their result; nothing is written.

    Args:
        predictions: a ``.json`` in COCO panoptic format (PNGs: in ``segmentations``, default
            beside the JSON, with its name without ``.json``), which gives the PQ metrics and the
            mIoU of the panoptic map; or one of COCO's instance results, which gives only the mAP;
            or a folder of label PNGs ``<image name>.png`` (class index, 255 or 65535 = none; 16
            bits where ids exceed 254), which gives only the mIoU; or a folder of outputs of
            detectron2 or transformers (:class:`possam.evaluation.saved_maps.SavedMaps`).
        category_ids: ``contiguous`` if category ids (or labels) are class indices, ``upstream`` if
            they are the publisher's ids (then the label 0 also means none).
        seen: one flag per class, True if seen; default: all seen.
        metrics: ``panoptic``, ``semantic`` or both, as the ground truth allows.
        subset: score only the images that have a prediction; the protocol says how many.
        workers: processes; the result is the same for any number.

    Raises:
        InputError: predictions that are missing, malformed, incomplete or of the wrong size.
        PossamError: a worker died, or panopticapi computes another PQ from the same predictions.
    """
    classes = len(dataset.categories)
    flags = [True] * classes if seen is None else list(seen)
    if len(flags) != classes:
        raise InputError(
            f"{dataset.directory}: {classes} classes, but {len(flags)} flags of seen classes; give "
            "one per class"
        )
    check_category_ids(category_ids)
    predicted: PredictionReader | LabelFormat | SavedMaps
    source, content = "panoptic map", None
    if predictions.is_dir():
        if segmentations is not None:
            raise InputError(
                f"{predictions}: a folder needs no folder of segmentations; for panoptic "
                "predictions name the JSON file"
            )
        if any(map(is_saved_map, predictions.iterdir())):
            predicted = SavedMaps(
                folder=predictions,
                dataset=dataset.name,
                classes=by_id(dataset, category_ids),
                category_ids=category_ids,
            )
        elif "semantic" not in metrics:
            raise InputError(f"{predictions}: label PNGs only give mIoU, which is not measured")
        else:
            metrics, source = {"semantic"}, "label PNGs"
            predicted = LabelFormat.of(predictions, dataset, category_ids=category_ids)
        images = predicted.images(dataset) if subset else dataset.images
    else:
        with no_collection():
            content = read_json(predictions)
        if is_instance_results(content):
            return _measure_instances(
                dataset, predictions, content, evaluation=evaluation, flags=flags,
                category_ids=category_ids, subset=subset,
            )  # fmt: skip
        predicted = PredictionReader(
            predictions,
            dataset,
            folder=segmentations,
            category_ids=category_ids,
            subset=subset,
            content=content,
        )
        images = predicted.images
    dataset, protocol = _of_images(dataset, images, predictions)
    other = partial(suggest, dataset, predicted.numbers, stated=predicted.stated)
    try:
        evaluators = count_predictions(dataset, predicted, metrics=metrics, workers=workers)
    except NumberingError as error:
        hint = other(listed=predicted.listed)
        raise InputError(f"{error}; {hint}" if hint else str(error)) from error
    # panopticapi does not translate category ids, so it can check only contiguous ones.
    readable = (
        evaluation.check_panopticapi
        and category_ids == "contiguous"
        and isinstance(predicted, PredictionReader)
        and not predicted.renamed
    )
    statistics, result = make_result(
        dataset=dataset,
        evaluators=evaluators,
        seen=flags,
        evaluation=evaluation,
        protocol=protocol,
        semantic_prediction=source,
        written=(predictions, predicted.folder) if readable else None,
    )
    notes = [predicted.note]
    reached = [result["metrics"].get(name) for name in ("pq", "miou")]
    if all(value is None or value < LOW for value in reached):
        notes.append(other(listed=predicted.listed))
    if any(notes):
        result["protocol"][NOTES] = [note for note in notes if note]
    return statistics, result


def _of_images(
    dataset: ConvertedDataset, images: Sequence[ImageRecord], predictions: Path
) -> tuple[ConvertedDataset, dict[str, Any]]:
    """The data set with these images only, and what the protocol says of the predictions."""
    protocol: dict[str, Any] = {"predictions": predictions.name}
    if not images:
        raise InputError(f"{predictions}: no image of {dataset.name} {dataset.split} is predicted")
    if len(images) < len(dataset):
        protocol["subset"] = f"{len(images)} of {len(dataset)} images"
        dataset = replace(dataset, images=tuple(images))
    return dataset, protocol


def _measure_instances(
    dataset: ConvertedDataset,
    predictions: Path,
    content: Any,
    *,
    evaluation: EvaluationOptions,
    flags: list[bool],
    category_ids: str,
    subset: bool,
) -> tuple[ImageStatistics, dict[str, Any]]:
    """As :func:`measure_predictions`, of instance results: their mAP."""
    truth = dataset.instances()
    if not truth["annotations"]:
        raise InputError(f"{dataset.directory}: no instance in the ground truth to measure mAP by")
    found = InstanceResults(
        predictions,
        content,
        dataset,
        numbers=by_id(dataset, category_ids),
        kind=category_ids,
        subset=subset,
    )
    dataset, protocol = _of_images(dataset, found.images, predictions)
    evaluators = Evaluators.of(dataset, (), instances=truth)
    if evaluators.instances is not None:
        found.fill(evaluators.instances)
    statistics, result = make_result(
        dataset=dataset,
        evaluators=evaluators,
        seen=flags,
        evaluation=evaluation,
        protocol=protocol,
        semantic_prediction="none: instances",
        written=None,
    )
    if found.note:
        result["protocol"][NOTES] = [found.note]
    return statistics, result


class _Image(NamedTuple):
    """What a worker needs of an image, and no more, since it is sent through a pipe."""

    record: ImageRecord
    truth: dict[int, tuple[int, bool]]
    annotation: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Scores some images of ``dataset``, which is passed without its images."""

    dataset: ConvertedDataset
    predicted: PanopticFormat | LabelFormat | SavedMaps
    metrics: frozenset[str]

    def __call__(self, images: Sequence[_Image]) -> Evaluators:
        evaluators = Evaluators.of(self.dataset, self.metrics)
        with no_collection():
            for image in images:
                self._count(image, evaluators)
        return evaluators

    def _count(self, image: _Image, evaluators: Evaluators) -> None:
        record = image.record
        if isinstance(self.predicted, PanopticFormat):
            found, classes = self.predicted.read(record, image.annotation)
        else:
            found, classes = self.predicted.read(record)
        if evaluators.panoptic is not None:
            shared = count_shared_pixels(self._segment_ids(record), found)
            pairs = list(zip(*(part.tolist() for part in shared), strict=True))
            evaluators.panoptic.update_pairs(record.id, pairs, classes, image.truth)
        if evaluators.semantic is not None:
            shared = count_shared_pixels(self._labels(record), found)
            named = [classes.get(value, -1) for value in shared.second.tolist()]
            truth = np.where(shared.first < len(self.dataset.categories), shared.first, -1)
            evaluators.semantic.update_pairs(
                record.id, np.array(named, np.int64), truth, shared.pixels
            )

    def _segment_ids(self, record: ImageRecord) -> RunLengths:
        size = (record.height, record.width)
        ids = encode_file(record.panoptic, colour=True, size=size)
        if ids is not None:
            return ids
        return encode_array(replace(self.dataset, images=(record,)).panoptic(0))

    def _labels(self, record: ImageRecord) -> RunLengths:
        """Runs of class indices; void is a value above them."""
        size, classes = (record.height, record.width), len(self.dataset.categories)
        labels = encode_file(record.semantic, colour=False, size=size)
        if labels is not None:
            strange = (labels.values >= classes) & (labels.values != void_value(classes))
            if not strange.any():
                return labels
        return encode_array(replace(self.dataset, images=(record,)).semantic(0))


def count_predictions(
    dataset: ConvertedDataset,
    predictions: PredictionReader | LabelFormat | SavedMaps,
    *,
    metrics: Collection[str],
    workers: int,
) -> Evaluators:
    """Count all images, in ``workers`` processes; their number does not change the result.

    ``metrics``: ``panoptic``, ``semantic`` or both; label PNGs allow only ``semantic``.

    Raises:
        InputError: a prediction is malformed; the first one in the data set's order is named.
        PossamError: a worker died.
    """
    predicted: PanopticFormat | LabelFormat | SavedMaps
    if isinstance(predictions, PredictionReader):
        predicted, annotations = predictions.format, predictions.annotations
    else:
        predicted, annotations = predictions, {}
    with no_collection():
        images = [
            _Image(
                replace(record, segments=()),
                {s.id: (s.category, s.is_crowd) for s in record.segments},
                annotations.get(record.id, {}),
            )
            for record in dataset.images
        ]
    bare = replace(dataset, images=(), manifest={})
    job = _Job(dataset=bare, predicted=predicted, metrics=frozenset(metrics))
    total = Evaluators.of(dataset, metrics)
    with Progress(len(images), label="score", unit="images") as progress:
        for count, part in in_chunks(job, images, workers=workers, chunk=_CHUNK, preload=_PRELOAD):
            total.extend(part)
            progress.update(count)
    return total
