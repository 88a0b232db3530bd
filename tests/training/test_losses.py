"""The criterion: hand-computed values and invariants."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from possam.training import losses as module
from possam.training.losses import TERMS, Criterion, Losses, mask_iou, uncertain_points
from possam.training.matching import Matches, PaddedTargets
from possam.training.targets import Target
from tests.support.training_fakes import loss_params


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(
    counts: tuple[int, ...] = (3, 2), *, layers: int = 2, queries: int = 5, seed: int = 0
) -> dict[str, Any]:
    source = generator(seed)
    shape = (layers, len(counts), queries)
    return {
        "mask_logits": list(2 * torch.randn(*shape, 8, 8, generator=source)),
        "class_logits": torch.randn(*shape, 4, generator=source),
        "iou_logits": torch.randn(*shape, generator=source),
        "targets": [
            Target(
                torch.rand(count, 16, 16, generator=source) > 0.6,
                torch.randint(3, (count,), generator=source),
            )
            for count in counts
        ],
    }


def constant_points(monkeypatch: pytest.MonkeyPatch, count: int = 16) -> Tensor:
    """The same points for every pair, whatever its place."""
    points = torch.rand(count, 2, generator=generator(9))
    monkeypatch.setattr(
        module, "uncertain_points", lambda logits, *_, **__: points.expand(len(logits), -1, -1)
    )
    return points


def solid_case(logit: float, *, matched_class: float = 50.0) -> dict[str, Any]:
    """One image, one query, one target that covers it, one class; logits are constant."""
    return {
        "mask_logits": [torch.full((1, 1, 4, 4), logit)],
        "class_logits": torch.tensor([[[[matched_class, 0.0]]]]),
        "iou_logits": torch.zeros(1, 1, 1),
        "targets": [Target(torch.ones(1, 8, 8, dtype=torch.bool), torch.zeros(1, dtype=int))],
    }


def inner_points(monkeypatch: pytest.MonkeyPatch, count: int = 16) -> None:
    """Points away from the border, where samples of a constant map are that constant."""
    points = 0.2 + 0.6 * torch.rand(count, 2, generator=generator(9))
    monkeypatch.setattr(
        module, "uncertain_points", lambda logits, *_, **__: points.expand(len(logits), -1, -1)
    )


def test_values_computed_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    inner_points(monkeypatch)
    found = Criterion(loss_params())(**solid_case(0.0), generator=generator())
    # probability one half at each of 16 points of a full mask; logit 0 is outside: IoU 0
    assert found.terms["class"].item() == pytest.approx(0.0, abs=1e-6)
    assert found.terms["bce"].item() == pytest.approx(math.log(2), rel=1e-6)
    assert found.terms["dice"].item() == pytest.approx(1 - (2 * 8 + 1) / (8 + 16 + 1), rel=1e-6)
    assert found.terms["iou"].item() == pytest.approx(0.25)
    expected = 5 * math.log(2) + 5 * (1 - 17 / 25) + 0.25
    assert found.total.item() == pytest.approx(expected, rel=1e-6)


def test_a_perfect_prediction_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inner_points(monkeypatch)
    case = solid_case(60.0)
    case["iou_logits"] += 60.0
    assert Criterion(loss_params())(**case, generator=generator()).total.item() < 1e-6


def test_class_loss_by_hand_with_void_weight() -> None:
    case = solid_case(60.0)
    case["mask_logits"] = [torch.cat([case["mask_logits"][0], torch.full((1, 1, 4, 4), -60.0)], 1)]
    case["class_logits"] = torch.tensor([[[[1.0, 0.0], [2.0, 0.0]]]])
    case["iou_logits"] = torch.zeros(1, 1, 2)
    found = Criterion(loss_params(void_weight=0.1))(**case, generator=generator())
    matched, void = math.log(1 + math.exp(-1.0)), math.log(1 + math.exp(2.0))
    assert found.terms["class"].item() == pytest.approx((matched + 0.1 * void) / 1.1, rel=1e-6)


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("void_weight", [0.1, 0.0])
def test_losses_of_micro_batches_add_up_to_that_of_the_batch(
    monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], void_weight: float
) -> None:
    """With the same points for all, for any cut, and whatever targets the images have."""
    inner_points(monkeypatch)
    points = torch.rand(16, 2, generator=generator(4))
    monkeypatch.setattr(module.torch, "rand", lambda shape, **_: points.expand(shape))
    counts = (2, 0, 7, 1)  # more targets than queries, too
    masks = torch.randn(2, 4, 5, 6, 6, generator=generator(1))
    classes = torch.randn(2, 4, 5, 4, generator=generator(2))
    ious = torch.randn(2, 4, 5, generator=generator(3))
    targets = [
        Target(
            masks=torch.randn(count, 12, 12, generator=generator(count)) > 0,
            labels=torch.arange(count) % 3,
        )
        for count in counts
    ]
    criterion = Criterion(loss_params(void_weight=void_weight))

    def losses(start: int, stop: int) -> tuple[Tensor, ...]:
        inputs = [x[:, start:stop].clone().requires_grad_() for x in (masks, classes, ious)]
        found = criterion(
            mask_logits=list(inputs[0].unbind(0)),
            class_logits=inputs[1],
            iou_logits=inputs[2],
            targets=targets[start:stop],
            counts=counts,
            generator=generator(),
        )
        found.total.backward()
        terms = torch.stack([found.terms[name] for name in TERMS])
        return found.total.detach(), terms, *(x.grad for x in inputs if x.grad is not None)

    total, terms, *gradients = losses(0, 4)
    ends = np.cumsum(cuts)
    parts = [losses(int(end) - cut, int(end)) for cut, end in zip(cuts, ends, strict=True)]
    torch.testing.assert_close(sum(part[0] for part in parts), total)
    torch.testing.assert_close(sum(part[1] for part in parts), terms)
    for index, gradient in enumerate(gradients, start=2):
        torch.testing.assert_close(torch.cat([part[index] for part in parts], 1), gradient)


@given(st.integers(1, 40), st.floats(1.0, 4.0), st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_points_have_the_asked_number_and_range(
    count: int, oversample: float, importance: float
) -> None:
    logits = torch.randn(2, 5, 5, generator=generator(1))
    options = loss_params(points=count, oversample=oversample, importance=importance)
    first = uncertain_points(logits, options, generator=generator(7))
    again = uncertain_points(logits, options, generator=generator(7))
    assert first.shape == (2, count, 2)
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again)


def test_important_points_lie_near_the_edge_of_the_mask() -> None:
    logits = torch.where(torch.arange(32) < 16, 10.0, -10.0).expand(1, 32, 32)
    options = loss_params(points=400, importance=0.2)
    points = uncertain_points(logits, options, generator=generator())
    # beyond its border a map counts as 0, which is uncertain too (as in the reference)
    x, y = points[0].unbind(-1)
    edge = torch.stack([(x - 0.5).abs(), x, 1 - x, y, 1 - y]).amin(0)
    assert edge[:80].max() < 0.5 / 32
    assert edge[80:].mean() > 0.05


def pair(count: int = 1) -> Matches:
    zero = torch.zeros(count, dtype=torch.int64)
    return Matches(zero, zero, zero, zero)


def test_mask_iou_by_hand() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.bool)
    target[:, :, :4] = True
    padded = PaddedTargets.stack([Target(target, torch.zeros(1, dtype=torch.int64))])
    logits = torch.full((1, 4, 4), -1.0)
    logits[:, :2] = 0.5
    assert mask_iou(logits, padded, pair()).item() == pytest.approx(4 / 12)
    logits[:] = -1.0
    assert mask_iou(logits, padded, pair()).item() == 0.0


def test_iou_loss_trains_the_head_and_not_the_mask() -> None:
    case = random_case()
    for layer in case["mask_logits"]:
        layer.requires_grad_()
    case["iou_logits"].requires_grad_()
    only = loss_params(class_weight=0.0, bce_weight=0.0, dice_weight=0.0, iou_weight=1.0)
    Criterion(only)(**case, generator=generator()).total.backward()
    assert case["iou_logits"].grad.abs().sum() > 0
    for layer in case["mask_logits"]:
        assert layer.grad is None or layer.grad.abs().sum() == 0


def test_without_iou_head_the_term_is_zero() -> None:
    case = random_case()
    case["iou_logits"] = None
    found = Criterion(loss_params())(**case, generator=generator())
    assert found.terms["iou"].tolist() == [0.0, 0.0]


def total_of(case: dict[str, Any]) -> Losses:
    return Criterion(loss_params())(**case, generator=generator())


@given(st.permutations(range(5)))
@settings(max_examples=15, deadline=None)
def test_order_of_queries_does_not_matter(order: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        constant_points(patch)
        case = random_case()
        before = total_of(case)
        case["mask_logits"] = [layer[:, order] for layer in case["mask_logits"]]
        case["class_logits"] = case["class_logits"][:, :, order]
        case["iou_logits"] = case["iou_logits"][:, :, order]
        torch.testing.assert_close(total_of(case).total, before.total)


@given(st.permutations(range(3)))
@settings(max_examples=6, deadline=None)
def test_order_of_targets_does_not_matter(order: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        constant_points(patch)
        case = random_case()
        before = total_of(case)
        target = case["targets"][0]
        case["targets"][0] = Target(target.masks[order], target.labels[order])
        torch.testing.assert_close(total_of(case).total, before.total)


def test_layers_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    constant_points(monkeypatch)
    case = random_case(layers=1)
    one = total_of(case)
    double = {
        **case,
        "mask_logits": case["mask_logits"] * 2,
        "class_logits": case["class_logits"].repeat(2, 1, 1, 1),
        "iou_logits": case["iou_logits"].repeat(2, 1, 1),
    }
    two = total_of(double)
    torch.testing.assert_close(two.total, 2 * one.total)
    for name in TERMS:
        torch.testing.assert_close(two.terms[name], one.terms[name].repeat(2))


def test_an_image_without_segments_teaches_void_only() -> None:
    case = random_case((0, 0))
    for layer in case["mask_logits"]:
        layer.requires_grad_()
    case["class_logits"].requires_grad_()
    found = total_of(case)
    found.total.backward()
    for name in ("bce", "dice", "iou"):
        assert found.terms[name].abs().sum() == 0
    expected = -case["class_logits"].detach().log_softmax(-1)[..., -1].flatten(1).mean(1)
    torch.testing.assert_close(found.terms["class"], expected)
    assert (case["class_logits"].grad[..., -1] < 0).all()


def test_more_targets_than_queries_are_normalised_by_the_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner_points(monkeypatch)
    case = solid_case(0.0)
    case["targets"] = [Target(torch.ones(4, 8, 8, dtype=torch.bool), torch.zeros(4, dtype=int))]
    found = total_of(case)
    assert len(found.matches) == 1
    assert found.terms["bce"].item() == pytest.approx(math.log(2) / 4, rel=1e-6)


def test_equal_generators_give_equal_losses() -> None:
    assert total_of(random_case()).total.item() == total_of(random_case()).total.item()


def test_bfloat16_logits_are_scored_in_float32() -> None:
    case = random_case()
    rounded = {**case, "mask_logits": [layer.bfloat16() for layer in case["mask_logits"]]}
    wide = {**case, "mask_logits": [layer.bfloat16().float() for layer in case["mask_logits"]]}
    found = total_of(rounded)
    assert found.total.dtype == torch.float32
    torch.testing.assert_close(found.total, total_of(wide).total)
