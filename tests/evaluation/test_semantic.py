"""mIoU: torchmetrics and a count pixel by pixel as oracles; how the two averages differ."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from possam.evaluation.semantic import SemanticEvaluator
from possam.runtime.errors import InputError
from tests.support.jaccard import in_double
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity

torchmetrics = LazyModule("torchmetrics.classification")


def hand_count(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[dict[int, float], set[int]]:
    """IoU of each class in prediction or ground truth, pixel by pixel; classes of the latter."""
    both: dict[int, int] = {}
    either: dict[int, int] = {}
    present: set[int] = set()
    for predicted, target in pairs:
        for p, t in zip(predicted.flat, target.flat, strict=True):
            if t == -1:
                continue
            present.add(int(t))
            for k in {int(p), int(t)} - {-1}:
                either[k] = either.get(k, 0) + 1
                both[k] = both.get(k, 0) + int(p == t)
    return {k: both[k] / either[k] for k in sorted(either)}, present


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


@pytest.mark.parity("miou")
@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.full_size)])
def test_equals_torchmetrics_and_the_hand_count(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        seed=st.integers(0, 2**32 - 1),
        classes=st.integers(2, 8),
        images=st.integers(1, 4),
        void=st.sampled_from([0.0, 0.3, 1.0]),
        nothing=st.sampled_from([0.0, 0.2]),
    )
    def check(seed: int, classes: int, images: int, void: float, nothing: float) -> None:
        rng = np.random.default_rng(seed)
        evaluator = SemanticEvaluator(classes)
        pairs = []
        for number in range(images):
            # Some classes are left out on purpose: absent classes tell the averages apart.
            target = rng.integers(0, max(1, classes - 2), (9, 11))
            target[rng.random(target.shape) < void] = -1
            predicted = np.where(rng.random(target.shape) < 0.5, target.clip(0), classes - 1)
            predicted[rng.random(target.shape) < nothing] = -1
            evaluator.update(number, predicted, target)
            pairs.append((predicted, target))
        result = evaluator.result()
        iou, present = hand_count(pairs)
        parity.equal(result.per_class, iou)
        parity.equal(result.miou, mean([iou[k] for k in sorted(present)]))
        parity.equal(result.miou_union, mean(list(iou.values())))
        if nothing:  # torchmetrics knows no prediction of no class
            return
        per_class, macro = (
            torchmetrics.MulticlassJaccardIndex(classes, average=average, ignore_index=-1)
            for average in ("none", "macro")
        )
        for predicted, target in pairs:
            for oracle in (per_class, macro):
                oracle.update(torch.from_numpy(predicted), torch.from_numpy(target))
        theirs = in_double(per_class)
        parity.equal(result.per_class, {k: theirs[k] for k in iou})
        if present:
            parity.equal(result.miou, theirs[sorted(present)].mean())
            assert result.miou_union == pytest.approx(float(macro.compute()), rel=1e-6)

    check()


@pytest.mark.parity("miou")
def test_worked_example(parity: Parity) -> None:
    evaluator = SemanticEvaluator(4)
    evaluator.update(0, np.array([[0, 0, 1, 2]]), np.array([[0, 1, 1, -1]]))
    result = evaluator.result()
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 is predicted on void only: it does not occur.
    parity.equal(result.per_class, {0: 0.5, 1: 0.5})
    parity.equal([result.miou, result.miou_union], [0.5, 0.5])
    evaluator.update(1, np.array([[3, 3]]), np.array([[1, 1]]))
    result = evaluator.result()
    parity.equal(result.per_class, {0: 0.5, 1: 0.25, 3: 0.0})
    parity.equal([result.miou, result.miou_union], [0.375, 0.25])


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
