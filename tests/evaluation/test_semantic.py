"""mIoU: torchmetrics as oracle, and the two averages told apart by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from possam.errors import InputError
from possam.evaluation.semantic import SemanticEvaluator


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 8),
    images=st.integers(1, 4),
    void=st.sampled_from([0.0, 0.3]),
)
def test_equals_torchmetrics(seed: int, classes: int, images: int, void: float) -> None:
    rng = np.random.default_rng(seed)
    evaluator = SemanticEvaluator(classes)
    oracle = MulticlassJaccardIndex(classes, average="none", ignore_index=-1)
    appearing: set[int] = set()
    either: set[int] = set()
    for number in range(images):
        # Some classes are left out on purpose: absent classes tell the averages apart.
        target = rng.integers(0, max(1, classes - 2), (9, 11))
        target[rng.random(target.shape) < void] = -1
        predicted = np.where(rng.random(target.shape) < 0.5, target.clip(0), classes - 1)
        evaluator.update(number, predicted, target)
        oracle.update(torch.from_numpy(predicted), torch.from_numpy(target))
        appearing |= set(target[target >= 0].tolist())
        either |= set(target[target >= 0].tolist()) | set(predicted[target >= 0].tolist())
    result = evaluator.result()
    iou = oracle.compute().double().numpy()
    assert result.per_class == pytest.approx({k: iou[k] for k in sorted(either)}, abs=1e-6)
    if appearing:
        assert result.miou == pytest.approx(iou[sorted(appearing)].mean(), abs=1e-6)
        assert result.miou_union == pytest.approx(iou[sorted(either)].mean(), abs=1e-6)


def test_worked_example() -> None:
    evaluator = SemanticEvaluator(4)
    evaluator.update(0, np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, -1]]))
    result = evaluator.result()
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 is predicted on void only: it does not occur.
    assert result.per_class == {0: 0.5, 1: 0.5}
    assert result.miou == result.miou_union == 0.5
    evaluator.update(1, np.array([[3, 3]]), np.array([[1, 1]]))
    result = evaluator.result()
    assert result.per_class == {0: 0.5, 1: 0.25, 3: 0.0}
    assert result.miou == pytest.approx(0.375)
    assert result.miou_union == pytest.approx(0.25)


def test_no_class_is_a_miss_and_counts_for_no_class() -> None:
    evaluator = SemanticEvaluator(2)
    evaluator.update(0, np.array([[0, -1, -1, -1]]), np.array([[0, 0, -1, 1]]))
    counts = evaluator.counts()
    assert counts.intersection.tolist() == [[1, 0]]
    assert counts.predicted.tolist() == [[1, 0]]
    assert counts.target.tolist() == [[2, 1]]


def test_all_void_is_undefined_and_bad_labels_are_refused() -> None:
    evaluator = SemanticEvaluator(2)
    evaluator.update(0, np.zeros((2, 2), int), -np.ones((2, 2), int))
    assert math.isnan(evaluator.result().miou) and math.isnan(evaluator.result().miou_union)
    with pytest.raises(InputError, match=r"image 1: prediction: labels are 0..2; valid are 0..1"):
        evaluator.update(1, np.array([[0, 2]]), np.array([[0, 1]]))
    with pytest.raises(InputError, match="size of the image"):
        evaluator.update(1, np.array([[0]]), np.array([[0, 1]]))


def test_arrange_reorders_rows() -> None:
    evaluator = SemanticEvaluator(2)
    evaluator.update(7, np.array([[0]]), np.array([[0]]))
    evaluator.update(3, np.array([[1]]), np.array([[1]]))
    evaluator.arrange([3, 7])
    assert evaluator.counts().target.tolist() == [[0, 1], [1, 0]]
