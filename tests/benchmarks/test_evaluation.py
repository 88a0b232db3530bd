"""The benchmark of the evaluation: its drawings, and that all programs agree on them."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as rle

from benchmarks.evaluation import cases
from benchmarks.evaluation_data import (
    SEGMENTS,
    SIZE,
    draw_detections,
    draw_scene,
    write_labels,
    write_panoptic,
)
from benchmarks.harness import measure
from possam.evaluation.reader import LabelFormat, PredictionReader
from possam.evaluation.score import count_predictions


def test_a_tiny_run_finds_the_same_numbers_with_every_program() -> None:
    found = {
        case.name: measure(case, repeats=1, report=lambda line: None)
        for case in cases(images=3, detected_images=6)
    }
    assert list(found) == ["evaluation/pq", "evaluation/ap", "evaluation/miou_847"]
    assert [case["target"] for case in found.values()] == [10.0, 5.0, 5.0]
    assert [case["items"] for case in found.values()] == [3, 6, 3]
    panoptic, instances, semantic = found.values()
    assert panoptic["error"] == 0
    assert semantic["error"] <= 1e-15
    # A sum over processes rounds in another order, and so does a mean over classes.
    rounded = [instances["error"], *(o["error"] for c in found.values() for o in c["others"])]
    assert len(rounded) == 6 and max(rounded) <= 1e-12
    assert [other["target"] for other in panoptic["others"]] == [1.0, 1.0]
    references = [o["reference"] for c in found.values() for o in c["others"]]
    names = [reference.split()[0] for reference in references]
    assert names == ["hotcoco", "panopticapi-lite", "pycocotools", "faster-coco-eval", "hotcoco"]
    json.dumps(list(found.values()))


def test_scenes_are_functions_of_their_seed() -> None:
    one, again, other = (draw_scene(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert one.shape == SIZE and set(np.unique(one)) == set(range(SEGMENTS))


def test_panoptic_data_have_hits_misses_and_void(tmp_path: Path) -> None:
    dataset = write_panoptic(tmp_path, images=4, classes=5, seed=3)
    reader = PredictionReader(
        tmp_path / "predictions.json", dataset, folder=None, category_ids="contiguous"
    )
    found = count_predictions(dataset, reader, metrics={"panoptic"}, workers=1).panoptic
    assert found is not None
    counts = found.counts()
    assert len(counts.tp) == 4 and (counts.tp.sum(1) > 4).all()
    assert counts.fp.sum() and counts.fn.sum()
    assert (dataset.panoptic(0) == 0).any() and len(dataset.images[0].segments) == SEGMENTS - 1


@pytest.mark.parametrize(("classes", "stored"), [(9, np.uint8), (847, np.uint16)])
def test_labels_hold_void_and_are_partly_right(
    tmp_path: Path, classes: int, stored: type[np.unsignedinteger]
) -> None:
    dataset = write_labels(tmp_path, images=3, classes=classes, seed=3)
    assert (dataset.semantic(0) == -1).any() and dataset.semantic(0).max() < classes
    predicted = LabelFormat.of(tmp_path / "labels", dataset, category_ids="contiguous")
    runs, _ = predicted.read(dataset.images[0])
    assert runs.bits == 8 * stored().itemsize
    found = count_predictions(dataset, predicted, metrics={"semantic"}, workers=1).semantic
    assert found is not None and 0.2 < found.result().miou < 0.9


def test_detections_lie_on_objects_and_beside_them() -> None:
    drawn = draw_detections(images=3, classes=6, top_k=30, seed=1)
    again = draw_detections(images=3, classes=6, top_k=30, seed=1)
    assert drawn == again
    results = drawn.as_results()
    assert len(results) == 90 and {result["image_id"] for result in results} == {0, 1, 2}
    for number, (masks, _, _) in enumerate(drawn.found):
        objects = [
            target["segmentation"]
            for target in drawn.instances["annotations"]
            if target["image_id"] == number
        ]
        best = np.asarray(rle.iou(masks, objects, [0] * len(objects))).max(axis=1)
        assert (best > 0.5).any() and (best < 0.5).any()
