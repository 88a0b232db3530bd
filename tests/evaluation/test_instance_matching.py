"""Matches of detections with objects: pycocotools' COCOeval as oracle, number for number."""

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from possam.evaluation import instance
from possam.evaluation.instance import IOU_LEVELS, InstanceEvaluator, InstanceMatches
from tests.support.coco_oracle import encode

CLASSES = 4
THINGS = (0, 1, 3)

Boxes = st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6))
Sizes = st.tuples(st.integers(6, 9), st.integers(6, 9))


def box(place: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    top, left, height, width = place
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed run lengths: by columns, zeros first."""
    flat = mask.ravel(order="F")
    bounds = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *bounds, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def segmentation(
    mask: np.ndarray, place: tuple[int, int, int, int], kind: str
) -> dict[str, Any] | list[list[float]]:
    if kind == "polygons":
        top, left, height, width = map(float, place)
        right, middle, bottom = left + width, left + width / 2, top + height
        return [
            [left, top, middle, top, middle, bottom, left, bottom],
            [middle, top, right, top, right, bottom, middle, bottom],
        ]
    if kind == "runs":
        return {"size": list(mask.shape), "counts": runs_of(mask)}
    code = encode(mask)
    return {**code, "counts": code["counts"].decode()} if kind == "text" else code


@st.composite
def scenes(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO instances, and results; few places and scores, so that ties are many."""
    images = [
        {"id": number, "height": height, "width": width}
        for number, (height, width) in zip(
            draw(st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=4)),
            draw(st.lists(Sizes, min_size=4, max_size=4)),
            strict=False,
        )
    ]
    annotations, results = [], []
    for image in images:
        size = image["height"], image["width"]
        for _ in range(draw(st.integers(0, 5))):
            place = draw(Boxes)
            mask = box(place, size)
            kind = draw(st.sampled_from(["polygons", "runs", "text", "bytes"]))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": draw(st.sampled_from(THINGS)),
                    "segmentation": segmentation(mask, place, kind),
                    "area": int(mask.sum()),
                    "bbox": [0, 0, 1, 1],
                    "iscrowd": int(draw(st.integers(0, 3)) == 0),
                }
            )
        for _ in range(draw(st.integers(0, 8))):
            results.append(
                {
                    "image_id": image["id"],
                    "category_id": draw(st.sampled_from(THINGS)),
                    "segmentation": encode(box(draw(Boxes), size)),
                    "score": draw(st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])),
                }
            )
    categories = [{"id": kind, "name": str(kind)} for kind in THINGS]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def ours(instances: dict[str, Any], results: list[dict[str, Any]]) -> InstanceMatches:
    ids = [image["id"] for image in instances["images"]]
    evaluator = InstanceEvaluator(copy.deepcopy(instances), image_ids=ids, num_classes=CLASSES)
    for found in results:
        parts = [found["segmentation"]], [found["category_id"]], [found["score"]]
        evaluator.update_encoded(found["image_id"], *parts)
    return evaluator.finish()


def theirs(
    instances: dict[str, Any], results: list[dict[str, Any]], *, most: int
) -> InstanceMatches:
    """Both sides as annotations: ``loadRes`` refuses an empty list."""
    ids = [image["id"] for image in instances["images"]]
    found = [
        {**result, "id": number, "area": float(rle.area(result["segmentation"])), "iscrowd": 0}
        for number, result in enumerate(results, start=1)
    ]
    sides = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (instances["annotations"], found):
            coco = COCO()
            coco.dataset = copy.deepcopy({**instances, "annotations": annotations})
            coco.createIndex()
            sides.append(coco)
        evaluation = COCOeval(*sides, "segm")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
    targets = np.zeros((len(ids), CLASSES), np.int64)
    image, category, score = [], [], []
    matched, ignored = ([np.zeros((len(IOU_LEVELS), 0), bool)] for _ in range(2))
    for group in evaluation.evalImgs:
        if group is None:
            continue
        row, kind = ids.index(group["image_id"]), group["category_id"]
        targets[row, kind] = np.count_nonzero(np.asarray(group["gtIgnore"]) == 0)
        image += [row] * len(group["dtScores"])
        category += [kind] * len(group["dtScores"])
        score += group["dtScores"]
        matched.append(np.asarray(group["dtMatches"]) > 0)
        ignored.append(np.asarray(group["dtIgnore"]) > 0)
    return InstanceMatches(
        image=np.array(image, np.int64),
        category=np.array(category, np.int64),
        score=np.array(score, np.float64),
        matched=np.concatenate(matched, axis=1).T,
        ignored=np.concatenate(ignored, axis=1).T,
        targets=targets,
    )


def assert_equal(one: InstanceMatches, other: InstanceMatches) -> None:
    for name in ("image", "category", "score", "matched", "ignored", "targets"):
        mine, expected = getattr(one, name), getattr(other, name)
        assert mine.dtype == expected.dtype and np.array_equal(mine, expected), name


@pytest.mark.parametrize(("most", "block"), [(100, 1 << 20), (3, 1 << 20), (100, 4)])
def test_matches_are_those_of_cocoeval(
    monkeypatch: pytest.MonkeyPatch, most: int, block: int
) -> None:
    """Also where few detections count, and where few overlaps fit into one block."""
    monkeypatch.setattr(instance, "MAX_DETECTIONS", most)
    monkeypatch.setattr(instance, "_BLOCK", block)

    @settings(max_examples=80)
    @given(scenes())
    def check(scene: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
        instances, results = scene
        assert_equal(ours(instances, results), theirs(instances, results, most=most))

    check()


def test_more_than_100_detections_with_equal_scores_and_overlaps() -> None:
    """Which hundred count, and what each of them takes, only depends on the order."""
    rng, size = np.random.default_rng(5), (9, 9)
    annotations, results = [], []
    for number in range(60):
        place = tuple(rng.integers(0, 3, 2)) + tuple(rng.integers(2, 4, 2))
        mask = box(place, size)
        annotations.append(
            {
                "id": number + 1,
                "image_id": 4,
                "category_id": 1,
                "segmentation": encode(mask),
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "iscrowd": int(number % 9 == 0),
            }
        )
    for _ in range(250):
        place = tuple(rng.integers(0, 4, 2)) + tuple(rng.integers(2, 4, 2))
        results.append(
            {
                "image_id": 4,
                "category_id": 1,
                "segmentation": encode(box(place, size)),
                "score": float(rng.choice([0.2, 0.4, 0.6])),
            }
        )
    instances = {
        "images": [{"id": 4, "height": 9, "width": 9}, {"id": 2, "height": 9, "width": 9}],
        "annotations": annotations,
        "categories": [{"id": kind, "name": str(kind)} for kind in THINGS],
    }
    found = ours(instances, results)
    assert_equal(found, theirs(instances, results, most=100))
    assert len(found.score) == 100 and found.matched.any() and found.ignored.any()
    assert set(found.score) == {0.4, 0.6} or set(found.score) == {0.6}


def test_of_equal_overlaps_the_last_object_is_taken() -> None:
    """By hand: the better detection has 3/5 of both objects, the other is the last object."""
    first, better, last = (encode(box((top, 0, 4, 1), (6, 6))) for top in (0, 1, 2))
    targets = [
        {"id": number, "image_id": 0, "category_id": 0, "segmentation": code, "iscrowd": 0}
        for number, code in enumerate((first, last))
    ]
    instances = {
        "images": [{"id": 0, "height": 6, "width": 6}],
        "annotations": targets,
        "categories": [{"id": 0}],
    }
    found = [
        {"image_id": 0, "category_id": 0, "segmentation": code, "score": score}
        for code, score in ((last, 0.3), (better, 0.8))
    ]
    matches = ours(instances, found)
    assert matches.score.tolist() == [0.8, 0.3]
    low, high = IOU_LEVELS < 0.59, IOU_LEVELS > 0.61
    assert matches.matched[:, low].tolist() == [[True] * 2, [False] * 2]
    assert matches.matched[:, high].tolist() == [[False] * 7, [True] * 7]
    assert not matches.ignored.any()


def test_a_crowd_region_takes_what_the_object_does_not() -> None:
    """By hand: an object and a crowd region in one place, three detections of it."""
    mask = box((0, 0, 2, 2), (6, 6))
    target = {
        "image_id": 0,
        "category_id": 0,
        "segmentation": encode(mask),
        "area": 4,
        "bbox": [0, 0, 2, 2],
        "iscrowd": 0,
    }
    instances = {
        "images": [{"id": 0, "height": 6, "width": 6}],
        "annotations": [{**target, "id": 1}, {**target, "id": 2, "iscrowd": 1}],
        "categories": [{"id": 0}],
    }
    found = {"image_id": 0, "category_id": 0, "segmentation": encode(mask)}
    results = [{**found, "score": score} for score in (0.1, 0.9, 0.5)]
    matches = ours(instances, results)
    # The best takes the object; the others fall on the crowd region, any number of them.
    assert matches.score.tolist() == [0.9, 0.5, 0.1]
    assert matches.matched.all()
    assert matches.ignored.tolist() == [[False] * 10, [True] * 10, [True] * 10]
    assert matches.targets.tolist() == [[1, 0, 0, 0]]


def test_detections_of_other_images_and_classes_do_not_count() -> None:
    mask = encode(box((0, 0, 2, 2), (6, 6)))
    instances = {
        "images": [{"id": number, "height": 6, "width": 6} for number in (3, 7)],
        "annotations": [],
        "categories": [{"id": 0}, {"id": 1}],
    }
    evaluator = InstanceEvaluator(instances, image_ids=[7], num_classes=CLASSES)
    for image_id, kind in ((3, 0), (7, 2), (7, 1)):
        evaluator.update_encoded(image_id, [mask], [kind], [0.5])
    matches = evaluator.finish()
    assert matches.image.tolist() == [0] and matches.category.tolist() == [1]
    assert not matches.matched.any() and not matches.targets.any()
