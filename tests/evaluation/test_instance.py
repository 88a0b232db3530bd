"""Mask AP: pycocotools as oracle for the matches, the accumulation and every bootstrap resample."""

import contextlib
import copy
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from possam.errors import InputError
from possam.evaluation.instance import InstanceEvaluator

SIZE = 24
CLASSES = 5
THINGS = (0, 2, 3)


def box_mask(rng: np.random.Generator) -> np.ndarray:
    top, left = rng.integers(0, SIZE - 4, 2)
    height, width = rng.integers(3, 14, 2)
    mask = np.zeros((SIZE, SIZE), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def encode(mask: np.ndarray) -> dict:
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


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


def oracle(instances: dict, detections: list[dict], draw: list[int]) -> tuple[np.ndarray, float]:
    """COCOeval with its default parameters on the images ``draw`` (repeats become new images)."""
    by_image: dict[int, list[dict]] = {}
    for annotation in instances["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    images, truth, found = [], [], []
    for number, place in enumerate(draw):
        image = {**instances["images"][place], "id": number}
        images.append(image)
        for annotation in by_image.get(instances["images"][place]["id"], []):
            copied = copy.deepcopy(annotation)
            truth.append({**copied, "id": len(truth) + 1, "image_id": number})
        d = detections[place]
        for mask, label, score in zip(d["masks"], d["labels"], d["scores"], strict=True):
            found.append(
                {
                    "image_id": number,
                    "category_id": int(label),
                    "segmentation": encode(mask),
                    "score": float(score),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        categories = instances["categories"]
        coco.dataset = {"images": images, "annotations": truth, "categories": categories}
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.eval["precision"][:, :, :, 0, -1], evaluation.stats[0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 7))
def test_equals_pycocotools_exactly(seed: int, images: int) -> None:
    instances, detections = world(seed, images)
    if not sum(len(d["scores"]) for d in detections):
        return
    matches = finish(instances, detections)
    precision, average = oracle(instances, detections, list(range(images)))
    weights = np.ones((1, images))
    ours = matches.precision(weights)[0][:, :, list(THINGS)]
    assert np.array_equal(np.where(np.isnan(ours), -1.0, ours), precision)
    value = matches.average_precision(weights)[0]
    assert (np.isnan(value) and average == -1) or value == pytest.approx(average, abs=1e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_equal_pycocotools_on_repeated_images(seed: int) -> None:
    images = 5
    instances, detections = world(seed, images)
    draw = np.random.default_rng(seed).integers(0, images, images)
    if not sum(len(detections[i]["scores"]) for i in draw):
        return
    weights = np.bincount(draw, minlength=images)[None].astype(float)
    matches = finish(instances, detections)
    precision, average = oracle(instances, detections, sorted(draw.tolist()))
    ours = matches.precision(weights)[0][:, :, list(THINGS)]
    np.testing.assert_allclose(np.where(np.isnan(ours), -1.0, ours), precision, atol=1e-14)
    value = matches.average_precision(weights)[0]
    assert (np.isnan(value) and average == -1) or value == pytest.approx(average, abs=1e-14)


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
    nothing = [{**d, "masks": d["masks"][:0]} for d in detections]
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
