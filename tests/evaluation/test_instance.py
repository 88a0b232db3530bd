"""Mask AP: pycocotools as oracle for the matches, the accumulation and every bootstrap resample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from possam.evaluation.instance import InstanceEvaluator
from possam.runtime.errors import InputError
from tests.support.coco_oracle import encode, oracle
from tests.support.parity_report import Parity

SIZE = 24
CLASSES = 5
THINGS = (0, 2, 3)
EXAMPLES = [20, pytest.param(400, marks=pytest.mark.full_size)]


def box_mask(rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, SIZE - 4, 2)
    height, width = rng.integers(3, 14, 2)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def world(seed: int, images: int) -> tuple[dict, list[dict]]:
    """COCO instances and detections (image, masks, labels, scores): jittered objects and noise."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(images):
        masks, labels, scores = [], [], []
        for _ in range(rng.integers(0, 5)):
            mask, label = box_mask(rng), int(rng.choice(THINGS))
            code = encode(mask)
            annotations.append(
                {
                    "id": len(annotations),  # from 0 on purpose: pycocotools alone would stumble
                    "image_id": 10 * image,
                    "category_id": label,
                    "segmentation": code,
                    "area": int(mask.sum()),
                    "bbox": rle.toBbox(code).tolist(),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
            for _ in range(rng.integers(0, 3)):
                shift = tuple(rng.integers(-2, 3, 2))
                masks.append(np.roll(mask, shift, (0, 1)))
                labels.append(label if rng.random() < 0.8 else int(rng.choice(THINGS)))
                scores.append(rng.random())
        for _ in range(rng.integers(0, 4)):
            masks.append(box_mask(rng))
            labels.append(int(rng.choice(THINGS)))
            scores.append(rng.random())
        detections.append(
            {
                "image": 10 * image,
                "masks": np.array(masks, bool).reshape(-1, SIZE, SIZE),
                "labels": np.array(labels, np.int64),
                "scores": np.array(scores, np.float64),
            }
        )
    instances = {
        "images": [{"id": 10 * i, "height": SIZE, "width": SIZE} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": k, "name": str(k)} for k in THINGS],
    }
    return instances, detections


def finish(instances: dict, detections: list[dict]):
    ids = [image["id"] for image in instances["images"]]
    evaluator = InstanceEvaluator(instances, image_ids=ids, num_classes=CLASSES)
    for d in detections:
        evaluator.update(d["image"], d["masks"], d["labels"], d["scores"])
    return evaluator.finish()


def compare(parity: Parity, instances: dict, detections: list[dict], draw: list[int]) -> None:
    """Precision of every level, recall and class, AP, and AP of every class."""
    if not sum(len(detections[place]["scores"]) for place in draw):
        return  # pycocotools cannot load an empty list
    images = len(detections)
    weights = np.bincount(draw, minlength=images)[None].astype(float)
    matches = finish(instances, detections)
    precision, average, per_class = oracle(instances, detections, sorted(draw))
    ours = matches.precision(weights)[0][:, :, list(THINGS)]
    parity.equal(np.where(np.isnan(ours), -1.0, ours), precision)
    value = float(matches.average_precision(weights)[0])
    parity.equal(-1.0 if np.isnan(value) else value, average)
    means = dict(zip(THINGS, ours.mean(axis=(0, 1)).tolist(), strict=True))
    parity.equal({k: mean for k, mean in means.items() if not np.isnan(mean)}, per_class)
    if draw == list(range(images)):
        assert np.array_equal(np.where(np.isnan(ours), -1.0, ours), precision)


@pytest.mark.parity("mask_ap")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_equals_pycocotools(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 7))
    def check(seed: int, images: int) -> None:
        compare(parity, *world(seed, images), list(range(images)))

    check()


@pytest.mark.parity("mask_ap")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_weights_equal_pycocotools_on_repeated_images(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(seed=st.integers(0, 2**32 - 1))
    def check(seed: int) -> None:
        draw = np.random.default_rng(seed).integers(0, 5, 5)
        compare(parity, *world(seed, 5), draw.tolist())

    check()


def test_detections_may_share_a_mask() -> None:
    instances, detections = world(5, 4)
    ids = [image["id"] for image in instances["images"]]
    own, shared = (
        InstanceEvaluator(instances, image_ids=ids, num_classes=CLASSES) for _ in range(2)
    )
    for d in detections:
        count = len(d["masks"])
        place = np.array([k for k in range(count) for _ in THINGS], np.int64)
        labels = np.tile(np.array(THINGS, np.int64), count)
        scores = d["scores"][place] / (1 + labels)
        own.update(d["image"], d["masks"][place], labels, scores)
        shared.update(d["image"], d["masks"], labels, scores, place=place)
    first, second = own.finish(), shared.finish()
    assert first.matched.any()
    for name in ("image", "category", "score", "matched", "ignored", "targets"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_weightings_are_independent_of_each_other() -> None:
    """One without any object among them is undefined, the others are as they are alone."""
    instances, detections = world(3, 7)
    matches = finish(instances, detections)
    weights = np.random.default_rng(0).integers(0, 3, (5, 7)).astype(float)
    weights[2] = 0
    together = matches.precision(weights)
    alone = [matches.precision(row[None])[0] for row in weights]
    np.testing.assert_array_equal(together, np.stack(alone))
    assert np.isnan(together[2]).all()
    assert np.array_equal(np.isnan(matches.average_precision(weights)), np.arange(5) == 2)


@pytest.mark.parity("mask_ap")
def test_more_than_100_detections_of_a_class_in_an_image(parity: Parity) -> None:
    """Only the best 100 count; more objects than that cannot all be found."""
    instances, _ = world(0, 1)
    rng = np.random.default_rng(4)
    masks = np.zeros((130, SIZE, SIZE), bool)
    places = np.stack(np.unravel_index(rng.permutation(SIZE * SIZE // 4)[:130], (12, 12)), 1)
    for mask, (row, column) in zip(masks, places, strict=True):
        mask[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    instances["annotations"] = [
        {
            "id": number + 1,
            "image_id": 0,
            "category_id": 0,
            "segmentation": encode(mask),
            "area": 4,
            "bbox": rle.toBbox(encode(mask)).tolist(),
            "iscrowd": 0,
        }
        for number, mask in enumerate(masks)
    ]
    labels, scores = np.zeros(130, np.int64), rng.random(130)
    found = {"image": 0, "masks": masks, "labels": labels, "scores": scores}
    compare(parity, instances, [found], [0])
    value = finish(instances, [found]).average_precision(np.ones((1, 1)))[0]
    parity.equal(value, 77 / 101)  # recall levels up to 100 of 130


def test_perfect_and_empty_predictions() -> None:
    instances, detections = world(1, 4)
    shown = {image["id"]: [] for image in instances["images"]}
    for annotation in instances["annotations"]:
        if not annotation["iscrowd"]:
            shown[annotation["image_id"]].append(annotation)
    perfect = [
        {
            "image": image,
            "masks": np.array([rle.decode(a["segmentation"]) for a in found], bool).reshape(
                -1, SIZE, SIZE
            ),
            "labels": np.array([a["category_id"] for a in found], np.int64),
            "scores": np.ones(len(found)),
        }
        for image, found in shown.items()
    ]
    assert finish(instances, perfect).average_precision(np.ones((1, 4)))[0] == pytest.approx(1.0)
    nothing = [
        {"image": d["image"], **{key: d[key][:0] for key in ("masks", "labels", "scores")}}
        for d in detections
    ]
    assert finish(instances, nothing).average_precision(np.ones((1, 4)))[0] == 0.0


def test_annotation_id_zero_can_be_found() -> None:
    """pycocotools takes an annotation with id 0 for "not matched"; ids are given anew."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:9, 3:11] = True
    instances = {
        "images": [{"id": 0, "height": SIZE, "width": SIZE}],
        "annotations": [
            {
                "id": 0,
                "image_id": 0,
                "category_id": 0,
                "segmentation": encode(mask),
                "area": int(mask.sum()),
                "bbox": [3, 2, 8, 7],
                "iscrowd": 0,
            }
        ],
        "categories": [{"id": 0}],
    }
    found = {"image": 0, "masks": mask[None], "labels": np.array([0]), "scores": np.array([0.5])}
    assert finish(instances, [found]).average_precision(np.ones((1, 1)))[0] == pytest.approx(1.0)


def test_missing_image_is_named() -> None:
    instances, _ = world(0, 2)
    with pytest.raises(InputError, match=r"lacks ids \[99\]"):
        InstanceEvaluator(instances, image_ids=[0, 99], num_classes=CLASSES)
