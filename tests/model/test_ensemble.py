"""Geometric ensemble and MASE: hand-computed values and properties."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from possam.model.ensemble import geometric_ensemble, mase, mase_weight

units = st.floats(0.0, 1.0)
confidences = st.sampled_from(["class", "mask"])


@st.composite
def cases(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Two distributions over the same classes, zeros among them, and which classes are seen."""
    count = draw(st.integers(1, 6))
    rows = []
    for _ in range(2):
        values = st.sampled_from([0, 1e-30, 0.01, 1, 7])
        weights = draw(st.lists(values, min_size=count, max_size=count))
        weights[draw(st.integers(0, count - 1))] = 3.0
        row = torch.tensor(weights, dtype=torch.float32)
        rows.append(row / row.sum())
    seen = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return rows[0], rows[1], torch.tensor(seen)


def test_geometric_ensemble_by_hand() -> None:
    p_ldp, p_clip = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    seen = torch.tensor([True, False])
    out = geometric_ensemble(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8)
    raw = torch.tensor([0.9**0.6 * 0.5**0.4, 0.1**0.2 * 0.5**0.8])
    assert_close(out, raw / raw.sum())


def test_mase_by_hand() -> None:
    """w = 0.4, confidences 0.9 and 0.5: odds 2/3 * 5/9 = 10/27, w' = 10/37; and so on."""
    p_ldp, p_clip = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    seen = torch.tensor([True, False])
    by_class = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence="class")
    w0, w1 = 10 / 37, 20 / 21  # odds of 0.8 are 4, times 0.5 / 0.1 = 20
    raw = torch.tensor([0.9 ** (1 - w0) * 0.5**w0, 0.1 ** (1 - w1) * 0.5**w1])
    assert_close(by_class, raw / raw.sum())
    by_mask = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence="mask")
    w0, w1 = 10 / 37, 20 / 29  # odds 4 * 5/9
    raw = torch.tensor([0.9 ** (1 - w0) * 0.5**w0, 0.1 ** (1 - w1) * 0.5**w1])
    assert_close(by_mask, raw / raw.sum())


@given(cases(), units, units, confidences)
def test_results_are_distributions(case: Any, alpha: float, beta: float, confidence: Any) -> None:
    p_ldp, p_clip, seen = case
    for out in (
        geometric_ensemble(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta),
        mase(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, confidence=confidence),
    ):
        assert torch.isfinite(out).all() and (out >= 0).all()
        assert_close(out.sum(), torch.tensor(1.0))


@given(cases(), confidences)
def test_ends_are_one_branch_exactly(case: Any, confidence: Any) -> None:
    p_ldp, p_clip, seen = case
    for weight, branch in ((0.0, p_ldp), (1.0, p_clip)):
        expected = branch / branch.sum()
        same = {"seen": seen, "alpha": weight, "beta": weight}
        assert torch.equal(geometric_ensemble(p_ldp, p_clip, **same), expected)
        assert torch.equal(mase(p_ldp, p_clip, **same, confidence=confidence), expected)


@given(cases(), units, units)
def test_equal_confidences_give_the_geometric_ensemble(
    case: Any, alpha: float, beta: float
) -> None:
    p_ldp, _, seen = case
    # A permutation of the classes has the same highest probability: the same mask confidence.
    p_clip = p_ldp.flip(0)
    weights = {"seen": seen, "alpha": alpha, "beta": beta}
    fixed = geometric_ensemble(p_ldp, p_clip, **weights)
    assert_close(mase(p_ldp, p_clip, **weights, confidence="mask"), fixed, rtol=1e-4, atol=1e-6)
    agreed = mase(p_ldp, p_ldp, **weights, confidence="class")
    assert_close(agreed, p_ldp, rtol=1e-4, atol=1e-6)


@given(cases(), st.floats(0.01, 0.99), confidences)
def test_weights_follow_the_confidences(case: Any, weight: float, confidence: Any) -> None:
    p_ldp, p_clip, _ = case
    base = torch.full_like(p_ldp, weight)
    low = mase_weight(p_ldp, p_clip * 0.5, weight=base, confidence=confidence)
    middle = mase_weight(p_ldp, p_clip, weight=base, confidence=confidence)
    high = mase_weight(p_ldp * 0.5, p_clip, weight=base, confidence=confidence)
    assert (low <= middle).all() and (middle <= high).all()
    assert ((middle >= 0) & (middle <= 1)).all()


def test_the_more_confident_branch_gains() -> None:
    p_ldp, p_clip = torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7])
    base = torch.full((2,), 0.6)
    by_class = mase_weight(p_ldp, p_clip, weight=base, confidence="class")
    assert by_class[0] < 0.6 < by_class[1]
    by_mask = mase_weight(p_ldp, p_clip, weight=base, confidence="mask")
    assert (by_mask < 0.6).all()


@given(cases(), units, units, confidences, st.randoms())
def test_permuting_classes_commutes(
    case: Any, alpha: float, beta: float, confidence: Any, random: Any
) -> None:
    p_ldp, p_clip, seen = case
    order = list(range(len(seen)))
    random.shuffle(order)
    for function in (geometric_ensemble, mase):
        extra = {"confidence": confidence} if function is mase else {}
        out = function(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, **extra)
        moved = function(
            p_ldp[order], p_clip[order], seen=seen[order], alpha=alpha, beta=beta, **extra
        )
        assert_close(moved, out[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("confidence", ["class", "mask"])
def test_masks_are_independent(confidence: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    p_ldp, p_clip = torch.randn(2, 4, 5, 6, generator=generator).softmax(-1)
    seen = torch.arange(6) < 3
    out = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence=confidence)
    one = mase(p_ldp[2, 3], p_clip[2, 3], seen=seen, alpha=0.4, beta=0.8, confidence=confidence)
    assert_close(out[2, 3], one)
    half = mase(
        p_ldp.bfloat16(), p_clip.bfloat16(), seen=seen, alpha=0.4, beta=0.8, confidence=confidence
    )
    assert half.dtype == torch.float32
