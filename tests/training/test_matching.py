"""Matching: against brute force and against the reference implementation."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from possam.runtime.errors import InputError
from possam.training.matching import PaddedTargets, assign, matching_costs, sample_points
from possam.training.targets import Target
from tests.support import naive_criterion as naive
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity
from tests.support.training_fakes import loss_params

reference = LazyModule("transformers.models.mask2former.modeling_mask2former")


def random_case(
    counts: tuple[int, ...], *, queries: int = 6, classes: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor, list[Target]]:
    generator = torch.Generator().manual_seed(seed)
    masks = 3 * torch.randn(len(counts), queries, 8, 8, generator=generator)
    scores = torch.randn(len(counts), queries, classes + 1, generator=generator)
    targets = [
        Target(
            masks=torch.rand(count, 16, 16, generator=generator) > 0.6,
            labels=torch.randint(classes, (count,), generator=generator),
        )
        for count in counts
    ]
    return masks, scores, targets


def costs_at(masks: Tensor, scores: Tensor, targets: list[Target], points: Tensor) -> Tensor:
    padded = PaddedTargets.stack(targets)
    return matching_costs(
        mask_samples=sample_points(masks, points),
        class_probs=scores.softmax(-1),
        target_samples=sample_points(padded.masks, points),
        labels=padded.labels,
        options=loss_params(),
    )


def pairs_of(costs: Tensor, counts: tuple[int, ...]) -> set[tuple[int, int, int, int]]:
    found = assign(costs[None], counts)
    columns = (found.layer, found.image, found.query, found.target)
    return set(zip(*(column.tolist() for column in columns), strict=True))


COUNTS = pytest.mark.parametrize("counts", [(3, 5), (1, 0, 4), (9, 2), (1,), (0, 0), (6,)])


@pytest.mark.parity("matching")
@COUNTS
def test_same_assignment_as_the_reference_matcher(
    counts: tuple[int, ...], parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks, scores, targets = random_case(counts)
    points = torch.rand(len(counts), 50, 2, generator=torch.Generator().manual_seed(1))
    ours = pairs_of(costs_at(masks, scores, targets, points), counts)

    draws = iter(points)
    monkeypatch.setattr(reference.torch, "rand", lambda *_, **__: next(draws)[None])
    matcher = reference.Mask2FormerHungarianMatcher(2.0, 5.0, 5.0, num_points=50)
    theirs = matcher(
        masks, scores, [target.masks.float() for target in targets], [t.labels for t in targets]
    )
    expected = [
        (0, image, int(query), int(target))
        for image, (queries, chosen) in enumerate(theirs)
        for query, target in zip(queries, chosen, strict=True)
    ]
    parity.equal(sorted(ours), expected)
    assert len(ours) == sum(min(6, count) for count in counts)


@pytest.mark.parity("matching")
def test_costs_equal_the_reference_pair_costs(parity: Parity) -> None:
    masks, scores, targets = random_case((3, 5))
    points = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1))
    ours = costs_at(masks, scores, targets, points)
    for image, target in enumerate(targets):
        found = sample_points(masks[image : image + 1], points[image : image + 1])[0]
        truth = sample_points(target.masks[None].float(), points[image : image + 1])[0]
        expected = (
            5.0 * reference.pair_wise_sigmoid_cross_entropy_loss(found, truth)
            + 5.0 * reference.pair_wise_dice_loss(found, truth)
            - 2.0 * scores[image].softmax(-1)[:, target.labels]
        )
        parity.close(ours[image, :, : len(target.labels)], expected, bound=1e-5)


@pytest.mark.parity("matching")
@COUNTS
def test_costs_and_assignment_equal_plain_loops(counts: tuple[int, ...], parity: Parity) -> None:
    masks, scores, targets = random_case(counts)
    points = torch.rand(len(counts), 20, 2, generator=torch.Generator().manual_seed(1))
    ours = costs_at(masks, scores, targets, points)
    expected = []
    for image, target in enumerate(targets):
        table = naive.costs(masks[image], scores[image], target, points[image], loss_params())
        assert len(table) == 6
        if counts[image]:
            parity.close(ours[image, :, : counts[image]], torch.tensor(table), bound=1e-5)
        cheapest = naive.cheapest(table, 6, counts[image])
        expected += sorted((0, image, query, which) for query, which in cheapest)
    parity.equal(sorted(pairs_of(ours, counts)), expected)


def test_costs_stay_exact_for_extreme_logits() -> None:
    logits = torch.tensor([[[-90.0, -20.0, 0.0, 20.0, 90.0]]])
    truth = torch.tensor([[[0.0, 1.0, 1.0, 0.0, 1.0]]])
    cost = matching_costs(
        mask_samples=logits,
        class_probs=torch.ones(1, 1, 2),
        target_samples=truth,
        labels=torch.zeros(1, 1, dtype=torch.int64),
        options=loss_params(class_weight=0.0, bce_weight=1.0, dice_weight=0.0),
    )
    assert cost.item() == pytest.approx((0 + 20 + np.log(2) + 20 + 0) / 5, rel=1e-6)


@given(st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_assignment_is_the_cheapest(queries: int, count: int, seed: int) -> None:
    costs = torch.rand(1, 1, queries, 4, generator=torch.Generator().manual_seed(seed))
    found = assign(costs, (count,))
    assert len(found) == min(queries, count)
    assert len(set(found.query.tolist())) == len(set(found.target.tolist())) == len(found)
    table = costs[0, 0, :, :count].numpy()
    if queries >= count:
        rows = itertools.permutations(range(queries), count)
        best = min(sum(table[row, n] for n, row in enumerate(order)) for order in rows)
    else:
        columns = itertools.permutations(range(count), queries)
        best = min(sum(table[n, column] for n, column in enumerate(order)) for order in columns)
    assert table[found.query, found.target].sum() == pytest.approx(best, abs=1e-5)


def test_padding_does_not_change_an_image() -> None:
    masks, scores, targets = random_case((3, 5))
    points = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1))
    both = costs_at(masks, scores, targets, points)
    alone = costs_at(masks[:1], scores[:1], targets[:1], points[:1])
    torch.testing.assert_close(both[:1, :, :3], alone)


@given(st.permutations(range(6)))
@settings(max_examples=15, deadline=None)
def test_queries_may_be_permuted(order: list[int]) -> None:
    masks, scores, targets = random_case((4,))
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(1))
    straight = pairs_of(costs_at(masks, scores, targets, points), (4,))
    mixed = pairs_of(costs_at(masks[:, order], scores[:, order], targets, points), (4,))
    assert {(a, b, order[query], n) for a, b, query, n in mixed} == straight


def test_matches_are_ordered_by_layer_image_and_query() -> None:
    found = assign(torch.rand(3, 2, 5, 4, generator=torch.Generator().manual_seed(0)), (4, 2))
    keys = list(zip(found.layer.tolist(), found.image.tolist(), found.query.tolist(), strict=True))
    assert keys == sorted(keys) and len(keys) == 3 * 6


def test_costs_that_are_not_finite_are_taken_last() -> None:
    masks, scores, targets = random_case((2,), queries=3)
    masks[0, 1] = float("nan")
    points = torch.rand(1, 50, 2, generator=torch.Generator().manual_seed(1))
    found = pairs_of(costs_at(masks, scores, targets, points), (2,))
    assert {query for _, _, query, _ in found} == {0, 2}


def test_empty_targets_match_nothing() -> None:
    _, _, targets = random_case((0, 0))
    padded = PaddedTargets.stack(targets)
    assert padded.masks.shape == (2, 0, 16, 16)
    assert len(assign(torch.zeros(7, 2, 5, 0), padded.counts)) == 0


def test_masks_of_two_sizes_are_refused() -> None:
    one = Target(torch.zeros(1, 4, 4, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    two = Target(torch.zeros(1, 4, 8, dtype=torch.bool), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(InputError, match="one mask size"):
        PaddedTargets.stack([one, two])


def test_points_are_in_xy_order_and_hit_pixel_centres() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    points = torch.tensor([[[2.5 / 4, 0.5 / 3], [0.5 / 4, 2.5 / 3], [1.0 / 4, 0.5 / 3]]])
    torch.testing.assert_close(sample_points(image, points)[0, 0], torch.tensor([2.0, 8.0, 0.5]))
