"""Scoring predictions: PQ, AP and mIoU, against the programs that people score with."""

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.evaluation_data import (
    Detections,
    draw_detections,
    write_labels,
    write_panoptic,
)
from benchmarks.harness import Case
from possam.datasets.format import ANNOTATIONS, PANOPTIC, SEMANTIC, ConvertedDataset

IMAGES = 2000
"""As in ADE20K's validation set."""
DETECTED_IMAGES = 500
"""For AP: COCOeval takes as long for these as panopticapi for all images."""
CLASSES, THINGS, FULL_CLASSES = 150, 100, 847
TOP_K = 100
SEED = 0


def cases(*, images: int = IMAGES, detected_images: int = DETECTED_IMAGES) -> Iterator[Case]:
    """Each metric against the program that defines it, and against faster ones.

    Our side scores files in as many workers as there are threads.
    """
    import torch

    workers = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        yield from _panoptic(Path(folder), images, workers)
    detections = draw_detections(images=detected_images, classes=THINGS, top_k=TOP_K, seed=SEED + 1)
    yield from _instances(detections)
    with tempfile.TemporaryDirectory() as folder:
        yield from _semantic(Path(folder), images, workers)


def _named(distribution: str, what: str) -> str:
    return f"{distribution} {metadata.version(distribution)}: {what}"


def _quietly(call: Callable[..., Any], *arguments: Any) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        return call(*arguments)


def _largest_difference(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.subtract(ours, theirs)).max())


def _panoptic(folder: Path, images: int, workers: int) -> Iterator[Case]:
    from hotcoco.panoptic import pq_compute as fast
    from panopticapi.evaluation import pq_compute, pq_compute_single_core

    from possam.evaluation.reader import PredictionReader
    from possam.evaluation.score import count_predictions
    from possam.runtime.files import read_json

    write_panoptic(folder, images=images, classes=CLASSES, seed=SEED)
    predictions = folder / "predictions.json"
    paths = [folder / ANNOTATIONS, predictions, folder / PANOPTIC, predictions.with_suffix("")]
    quality = ("pq", "sq", "rq")

    def ours() -> list[float]:
        dataset = ConvertedDataset.open(folder)
        reader = PredictionReader(predictions, dataset, folder=None, category_ids="contiguous")
        found = count_predictions(dataset, reader, metrics=("panoptic",), workers=workers)
        assert found.panoptic is not None
        result = found.panoptic.result()
        return [getattr(result, name) for name in quality]

    def single_core() -> list[float]:
        truth, guess = (read_json(path)["annotations"] for path in paths[:2])
        kinds = {kind["id"]: kind for kind in read_json(paths[0])["categories"]}
        folders = map(os.fspath, paths[2:])
        pairs = list(zip(truth, guess, strict=True))
        totals = _quietly(pq_compute_single_core, 0, pairs, *folders, kinds)
        average, _ = totals.pq_average(kinds, isthing=None)
        return [average[name] for name in quality]

    def program(compute: Callable[..., Any]) -> list[float]:
        average = _quietly(compute, *map(os.fspath, paths))["All"]
        return [average[name] for name in quality]

    yield Case(
        name="evaluation/pq",
        ours=ours,
        theirs=single_core,
        reference=_named("panopticapi-lite", "pq_compute_single_core"),
        others={
            _named("hotcoco", "panoptic.pq_compute, all cores"): lambda: program(fast),
            _named("panopticapi-lite", "pq_compute, one process per core"): lambda: program(
                pq_compute
            ),
        },
        error=(_largest_difference, "largest difference of PQ, SQ, RQ, as fractions"),
        items=images,
        unit="image",
        target=10.0,
        target_others=1.0,
        note=f"from JSON and PNG files to PQ; ours with {workers} workers, whose memory is not "
        "measured; panopticapi's sum over several processes rounds in another order",
    )


def _instances(detections: Detections) -> Iterator[Case]:
    import faster_coco_eval
    import hotcoco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from possam.evaluation.instance import InstanceEvaluator

    instances, results = detections.instances, detections.as_results()
    image_ids = [image["id"] for image in instances["images"]]

    def ours() -> list[float]:
        evaluator = InstanceEvaluator(
            instances, image_ids=image_ids, num_classes=len(instances["categories"])
        )
        for image_id, found in zip(image_ids, detections.found, strict=True):
            evaluator.update_encoded(image_id, *found)
        weights = np.ones((1, len(image_ids)))
        return [float(evaluator.finish().average_precision(weights)[0])]

    def index(kind: Callable[..., Any]) -> Any:
        """The ground truth, loaded; each library gets its own copy, because some write into it."""
        coco = kind()
        coco.dataset = copy.deepcopy(instances)
        coco.createIndex()
        return coco

    def evaluate(kind: Callable[..., Any], truth: Any, found: Any) -> list[float]:
        def run() -> list[float]:
            evaluation = kind(truth, found, "segm")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            return [float(evaluation.stats[0])]

        scores: list[float] = _quietly(run)
        return scores

    def one_number() -> list[float]:
        def run() -> list[float]:
            evaluation = COCOeval(truth, found, "segm")
            evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
            evaluation.params.maxDets = [TOP_K]
            evaluation.evaluate()
            evaluation.accumulate()
            precision = evaluation.eval["precision"]
            return [float(precision[precision > -1].mean())]

        scores: list[float] = _quietly(run)
        return scores

    truth = _quietly(index, COCO)
    found = _quietly(truth.loadRes, copy.deepcopy(results))
    fast_truth = _quietly(index, faster_coco_eval.COCO)
    fast_found = _quietly(fast_truth.loadRes, copy.deepcopy(results))
    hot_truth = hotcoco.COCO(copy.deepcopy(instances))
    hot_found = hot_truth.load_res(copy.deepcopy(results))
    yield Case(
        name="evaluation/ap",
        ours=ours,
        theirs=lambda: evaluate(COCOeval, truth, found),
        reference=_named("pycocotools", "COCOeval"),
        others={
            _named("pycocotools", "COCOeval, only for this AP"): one_number,
            _named("faster-coco-eval", "COCOeval_faster"): lambda: evaluate(
                faster_coco_eval.COCOeval_faster, fast_truth, fast_found
            ),
            _named("hotcoco", "COCOeval, all cores"): lambda: evaluate(
                hotcoco.COCOeval, hot_truth, hot_found
            ),
        },
        error=(_largest_difference, "difference of AP, as a fraction"),
        items=len(image_ids),
        unit="image",
        target=5.0,
        note="COCO's twelve numbers, from loaded and indexed results; ours is the one AP (IoU 0.50 "
        "to 0.95, all areas), from run lengths, in one process",
    )


def _semantic(folder: Path, images: int, workers: int) -> Iterator[Case]:
    from possam.evaluation.reader import LabelFormat
    from possam.evaluation.score import count_predictions

    classes = FULL_CLASSES
    write_labels(folder, images=images, classes=classes, seed=SEED + 2)
    labels = folder / "labels"
    names = sorted(path.name for path in labels.iterdir())

    def ours() -> list[float]:
        dataset = ConvertedDataset.open(folder)
        predicted = LabelFormat.of(labels, dataset, category_ids="contiguous")
        found = count_predictions(dataset, predicted, metrics=("semantic",), workers=workers)
        assert found.semantic is not None
        return [found.semantic.result().miou]

    def confusion_matrix() -> list[float]:
        matrix = np.zeros((classes, classes), np.int64)
        for name in names:
            truth = np.asarray(Image.open(folder / SEMANTIC / name)).astype(np.int64)
            guess = np.asarray(Image.open(labels / name)).astype(np.int64)
            valid = truth < classes
            pairs = truth[valid] * classes + guess[valid]
            matrix += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)
        hits, present = np.diag(matrix), matrix.sum(1) > 0
        union = matrix.sum(0) + matrix.sum(1) - hits
        return [float((hits[present] / union[present]).mean())]

    yield Case(
        name="evaluation/miou_847",
        reference=f"NumPy {np.__version__}: a bincount of 847 x 847 pairs per image, one process",
        ours=ours,
        theirs=confusion_matrix,
        error=(_largest_difference, "difference of mIoU, as a fraction"),
        items=images,
        unit="image",
        target=5.0,
        note=f"from PNG files of 16 bits to mIoU; ours with {workers} workers",
    )
