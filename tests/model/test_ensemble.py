"""Geometric ensemble and MASE: formulas written out in float64, values by hand, properties."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from possam.model import ensemble
from possam.model.ensemble import mase_weight
from tests.support.model_fakes import inference_options
from tests.support.parity_report import Parity

FLOAT32 = 1e-5
"""Bound: float32 logarithms of probabilities down to 1e-38 against float64."""
SMALLEST = float(np.finfo(np.float32).tiny)


def geometric_ensemble(p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, **options: Any) -> Tensor:
    return ensemble.geometric_ensemble(
        p_ldp, p_clip, seen=seen, options=inference_options(**options)
    )


def mase(p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, confidence: Any, **options: Any) -> Tensor:
    options = {**options, "mase_confidence": confidence}
    return ensemble.mase(p_ldp, p_clip, seen=seen, options=inference_options(**options))


# float32 keeps no relative precision below its smallest normal number.
units = st.floats(0.0, 1.0, width=32, allow_subnormal=False)
inner = st.floats(2.0**-7, 1 - 2.0**-7, width=32)
confidences = st.sampled_from(["class", "mask"])


@st.composite
def cases(draw: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Distributions of 1 to 3 masks by two branches, zeros among them; which classes are seen."""
    masks, count = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    values = st.sampled_from([0, 1e-30, 1e-3, 0.1, 0.5, 1, 2, 7])
    branches = []
    for _ in range(2):
        rows = []
        for _ in range(masks):
            weights = draw(st.lists(values, min_size=count, max_size=count))
            weights[draw(st.integers(0, count - 1))] = 3.0
            rows.append(weights)
        branch = torch.tensor(rows, dtype=torch.float32)
        branches.append(branch / branch.sum(-1, keepdim=True))
    seen = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    return branches[0], branches[1], torch.tensor(seen)


def holds(parity: Parity, condition: Tensor) -> None:
    """Count a property that must hold everywhere."""
    parity.equal(condition, torch.ones_like(condition))


# --- the formulas, written out


def fc_clip(
    ldp_logits: Tensor, clip_logits: Tensor, seen: Tensor, alpha: float, beta: float
) -> np.ndarray:
    """FC-CLIP's scores (..., K + 1) in float64, void last; ``ldp_logits`` have void last."""

    def softmax(values: np.ndarray) -> np.ndarray:
        powers = np.exp(values - values.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    inside, outside = ldp_logits.double().numpy(), clip_logits.double().numpy()
    p_in, p_out = softmax(inside[..., :-1]), softmax(outside)
    known = seen.numpy().astype(np.float64)
    logarithms = known * np.log(p_in ** (1 - alpha) * p_out**alpha)
    logarithms += (1 - known) * np.log(p_in ** (1 - beta) * p_out**beta)
    void = softmax(inside)[..., -1:]
    return np.concatenate([softmax(logarithms) * (1 - void), void], -1)


def mase_written_out(
    p_ldp: Tensor, p_clip: Tensor, seen: Tensor, alpha: float, beta: float, confidence: str
) -> tuple[np.ndarray, np.ndarray]:
    """MASE and CLIP's weights in float64: odds of the weight times the ratio of confidences."""
    first, second = (np.maximum(p.double().numpy(), SMALLEST) for p in (p_ldp, p_clip))
    ratio = second / first
    if confidence == "mask":
        ratio = second.max(-1, keepdims=True) / first.max(-1, keepdims=True)
    base = np.where(seen.numpy(), alpha, beta)
    weight = base * ratio / (1 - base + base * ratio)
    product = first ** (1 - weight) * second**weight
    return product / product.sum(-1, keepdims=True), weight


@pytest.mark.parity("geometric_ensemble")
@given(st.integers(0, 2**31), st.integers(1, 9), units, units, st.sampled_from([0.1, 1.0, 10.0]))
def test_geometric_ensemble_is_fc_clip_s(
    parity: Parity, seed: int, classes: int, alpha: float, beta: float, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ldp_logits = torch.randn(2, 5, classes + 1, generator=generator) * scale
    clip_logits = torch.randn(2, 5, classes, generator=generator) * scale
    seen = torch.rand(classes, generator=generator) < 0.5
    ours = geometric_ensemble(
        ldp_logits[..., :-1].softmax(-1),
        clip_logits.softmax(-1),
        seen=seen,
        alpha=alpha,
        beta=beta,
    )
    objects = 1 - ldp_logits.softmax(-1)[..., -1:]
    expected = fc_clip(ldp_logits, clip_logits, seen, alpha, beta)
    parity.close(ours * objects, expected[..., :-1], bound=FLOAT32)


@pytest.mark.parity("mase")
@given(cases(), units, units, confidences)
def test_mase_is_its_formula(
    parity: Parity, case: Any, alpha: float, beta: float, confidence: Any
) -> None:
    p_ldp, p_clip, seen = case
    expected, weight = mase_written_out(p_ldp, p_clip, seen, alpha, beta, confidence)
    ours = mase(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, confidence=confidence)
    parity.close(ours, expected, bound=FLOAT32)
    base = torch.where(seen, alpha, beta)
    adapted = mase_weight(p_ldp, p_clip, weight=base, confidence=confidence)
    assert np.allclose(adapted.numpy(), weight, rtol=0, atol=FLOAT32)


@pytest.mark.parity("geometric_ensemble")
def test_geometric_ensemble_by_hand(parity: Parity) -> None:
    p_ldp, p_clip = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    seen = torch.tensor([True, False])
    out = geometric_ensemble(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8)
    raw = np.array([0.9**0.6 * 0.5**0.4, 0.1**0.2 * 0.5**0.8])
    parity.close(out, raw / raw.sum(), bound=1e-6)


@pytest.mark.parity("mase")
def test_mase_by_hand(parity: Parity) -> None:
    """w = 0.4, confidences 0.9 and 0.5: odds 2/3 * 5/9 = 10/27, w' = 10/37; and so on."""
    p_ldp, p_clip = torch.tensor([0.9, 0.1]), torch.tensor([0.5, 0.5])
    seen = torch.tensor([True, False])
    by_class = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence="class")
    w0, w1 = 10 / 37, 20 / 21  # odds of 0.8 are 4, times 0.5 / 0.1 = 20
    raw = np.array([0.9 ** (1 - w0) * 0.5**w0, 0.1 ** (1 - w1) * 0.5**w1])
    parity.close(by_class, raw / raw.sum(), bound=1e-6)
    by_mask = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence="mask")
    w0, w1 = 10 / 37, 20 / 29  # odds 4 * 5/9
    raw = np.array([0.9 ** (1 - w0) * 0.5**w0, 0.1 ** (1 - w1) * 0.5**w1])
    parity.close(by_mask, raw / raw.sum(), bound=1e-6)


# --- properties


@pytest.mark.parity("mase")
@given(cases(), units, units, confidences)
def test_results_are_distributions_at_zero_probabilities_too(
    parity: Parity, case: Any, alpha: float, beta: float, confidence: Any
) -> None:
    p_ldp, p_clip, seen = case
    for out in (
        geometric_ensemble(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta),
        mase(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, confidence=confidence),
    ):
        holds(parity, torch.isfinite(out) & (out >= 0))
        parity.close(out.sum(-1), torch.ones(len(out)), bound=1e-6)


@pytest.mark.parity("mase")
@pytest.mark.parametrize("confidence", ["class", "mask"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_certain_branches_that_contradict_each_other(
    parity: Parity, weight: float, confidence: Any
) -> None:
    """One branch gives a class 1 and the other exactly 0; a third class gets 0 from both."""
    p_ldp, p_clip = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    seen = torch.tensor([True, True, False])
    options = {"seen": seen, "alpha": weight, "beta": 0.8}
    for out in (
        geometric_ensemble(p_ldp, p_clip, **options),
        mase(p_ldp, p_clip, **options, confidence=confidence),
    ):
        holds(parity, torch.isfinite(out) & (out[2] < 1e-6))


@pytest.mark.parity("mase")
@given(cases(), confidences)
def test_weights_of_0_and_1_are_one_branch_exactly(
    parity: Parity, case: Any, confidence: Any
) -> None:
    p_ldp, p_clip, seen = case
    for weight, branch in ((0.0, p_ldp), (1.0, p_clip)):
        expected = branch / branch.sum(-1, keepdim=True)
        same = {"seen": seen, "alpha": weight, "beta": weight}
        parity.equal(geometric_ensemble(p_ldp, p_clip, **same), expected)
        parity.equal(mase(p_ldp, p_clip, **same, confidence=confidence), expected)


@pytest.mark.parity("mase")
@given(cases(), units, units)
def test_equal_confidences_give_the_geometric_ensemble(
    parity: Parity, case: Any, alpha: float, beta: float
) -> None:
    p_ldp, _, seen = case
    # A permutation of the classes has the same highest probability: the same mask confidence.
    p_clip = p_ldp.flip(-1)
    weights = {"seen": seen, "alpha": alpha, "beta": beta}
    fixed = geometric_ensemble(p_ldp, p_clip, **weights)
    by_mask = mase(p_ldp, p_clip, **weights, confidence="mask")
    parity.close(by_mask, fixed, bound=FLOAT32)
    same = geometric_ensemble(p_ldp, p_ldp, **weights)
    parity.close(mase(p_ldp, p_ldp, **weights, confidence="class"), same, bound=FLOAT32)
    base = torch.where(seen, alpha, beta).expand_as(p_ldp)
    kept = mase_weight(p_ldp, p_clip, weight=base, confidence="mask")
    parity.close(kept, base, bound=FLOAT32)


@pytest.mark.parity("mase")
@given(cases(), units, units, confidences)
def test_raising_a_confidence_never_lowers_the_weight_of_its_branch(
    parity: Parity, case: Any, weight: float, share: float, confidence: Any
) -> None:
    p_ldp, p_clip, _ = case
    base = torch.full_like(p_ldp, weight)
    clip_weight = mase_weight(p_ldp, p_clip, weight=base, confidence=confidence)
    more_ldp = mase_weight(p_ldp + share * (1 - p_ldp), p_clip, weight=base, confidence=confidence)
    more_clip = mase_weight(
        p_ldp, p_clip + share * (1 - p_clip), weight=base, confidence=confidence
    )
    holds(parity, (more_ldp <= clip_weight + 1e-6) & (clip_weight <= more_clip + 1e-6))
    holds(parity, (clip_weight >= 0) & (clip_weight <= 1))


@given(inner, confidences)
def test_the_more_confident_branch_gains(weight: float, confidence: Any) -> None:
    """Strictly, so that a constant weight is no solution."""
    p_ldp, p_clip = torch.tensor([0.8, 0.2]), torch.tensor([0.3, 0.7])
    base = torch.full((2,), weight)
    adapted = mase_weight(p_ldp, p_clip, weight=base, confidence=confidence)
    assert adapted[0] < weight
    assert adapted[1] > weight if confidence == "class" else adapted[1] < weight


@pytest.mark.parity("mase")
@given(cases(), units, units, confidences, st.randoms())
def test_permuting_classes_or_masks_commutes(
    parity: Parity, case: Any, alpha: float, beta: float, confidence: Any, random: Any
) -> None:
    p_ldp, p_clip, seen = case
    rows, columns = (list(range(count)) for count in p_ldp.shape)
    random.shuffle(rows)
    random.shuffle(columns)
    for function in (geometric_ensemble, mase):
        extra = {"confidence": confidence} if function is mase else {}
        out = function(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, **extra)
        moved = function(
            p_ldp[:, columns],
            p_clip[:, columns],
            seen=seen[columns],
            alpha=alpha,
            beta=beta,
            **extra,
        )
        parity.close(moved, out[:, columns], bound=FLOAT32)
        moved = function(p_ldp[rows], p_clip[rows], seen=seen, alpha=alpha, beta=beta, **extra)
        parity.close(moved, out[rows], bound=1e-6)


@pytest.mark.parity("mase")
@pytest.mark.parametrize("confidence", ["class", "mask"])
def test_masks_are_independent(parity: Parity, confidence: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    p_ldp, p_clip = torch.randn(2, 4, 5, 6, generator=generator).softmax(-1)
    seen = torch.arange(6) < 3
    out = mase(p_ldp, p_clip, seen=seen, alpha=0.4, beta=0.8, confidence=confidence)
    one = mase(p_ldp[2, 3], p_clip[2, 3], seen=seen, alpha=0.4, beta=0.8, confidence=confidence)
    parity.close(out[2, 3], one, bound=1e-6)
    half = mase(
        p_ldp.bfloat16(), p_clip.bfloat16(), seen=seen, alpha=0.4, beta=0.8, confidence=confidence
    )
    assert half.dtype == torch.float32
