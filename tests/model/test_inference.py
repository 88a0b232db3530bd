"""Panoptic merging, instances and semantics against slow references and hand-computed cases."""

import itertools
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.inference import (
    Geometry,
    MaskScores,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from possam.model.ops.strips import STRIP_CELLS, first_argmax, full_probabilities, restore_rows
from possam.model.options import MaskFilter
from tests.support import slow_inference as slow
from tests.support.parity_report import Parity

PLAIN = Geometry(padded=(8, 8), content=(8, 8), output=(8, 8))
CROPPED = Geometry(padded=(16, 24), content=(11, 21), output=(14, 9))
IS_THING = torch.tensor([True, False, True, False, False])
EXAMPLES = [15, pytest.param(400, marks=pytest.mark.full_size)]

geometries = st.sampled_from([PLAIN, CROPPED])
seeds = st.integers(0, 2**31)
counts = st.sampled_from([1, 6, 20])


def scores(*, seed: int, queries: int = 12, classes: int = 5) -> tuple[Tensor, MaskScores]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, queries, classes, generator=generator) * 2
    void = torch.rand(1, queries, generator=generator)
    iou = torch.rand(1, queries, generator=generator)
    maps = F.interpolate(
        torch.randn(1, queries, 2, 3, generator=generator) * 4, size=(4, 6), mode="bilinear"
    )
    return maps[0], MaskScores(logits.softmax(-1), void, iou)


# --- geometry


def test_restoring_upsamples_crops_and_resizes() -> None:
    """A linear ramp stays a ramp; padding does not leak into the content."""
    ramp = (torch.arange(24.0) + 0.5).expand(1, 16, 24)
    small = F.interpolate(ramp[None], size=(4, 6), mode="bilinear", align_corners=False)[0]
    restored = Geometry(padded=(16, 24), content=(10, 16), output=(20, 32)).restore(small)
    assert restored.shape == (1, 20, 32)
    assert_close(restored[0, 5, 8:28], (torch.arange(8, 28) + 0.5) / 2)


@settings(max_examples=15)
@given(seed=seeds, sides=st.tuples(*[st.integers(1, 20)] * 4))
def test_restoring_is_bilinear(seed: int, sides: tuple[int, ...]) -> None:
    maps = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))
    padded, output = (20, 24), (sides[2], sides[3])
    geometry = Geometry(padded=padded, content=(sides[0], sides[1]), output=output)
    large = slow.resize(maps.numpy(), padded)[:, : sides[0], : sides[1]]
    expected = torch.from_numpy(slow.resize(large, output)).float()
    assert_close(geometry.restore(maps), expected, rtol=1e-5, atol=1e-5)


# --- panoptic


def merged(
    maps: Tensor,
    scored: MaskScores,
    geometry: Geometry,
    objects: float,
    overlap: float,
    mask_filter: MaskFilter = "objectness",
) -> tuple[Tensor, list[Any]]:
    return panoptic_inference(
        maps,
        scored,
        image=0,
        geometry=geometry,
        is_thing=IS_THING,
        mask_filter=mask_filter,
        object_threshold=objects,
        overlap_threshold=overlap,
    )


def compare_panoptic(
    parity: Parity,
    maps: Tensor,
    scored: MaskScores,
    geometry: Geometry,
    *thresholds: float,
    mask_filter: MaskFilter = "objectness",
) -> None:
    ids, segments = merged(maps, scored, geometry, *thresholds, mask_filter=mask_filter)
    assert ids.dtype == torch.int32 and tuple(ids.shape) == geometry.output
    assert [segment.id for segment in segments] == list(range(1, len(segments) + 1))
    assert set(ids.unique().tolist()) - {0} == {segment.id for segment in segments}
    found = sorted(
        (segment.category, sorted(map(tuple, (ids == segment.id).nonzero().tolist())))
        for segment in segments
    )
    probabilities = geometry.restore(maps).sigmoid()
    expected = slow.panoptic(probabilities, scored, IS_THING.tolist(), mask_filter, *thresholds)
    parity.equal(found, expected)
    assert all(segment.is_thing == bool(IS_THING[segment.category]) for segment in segments)
    ordered = [segment.score for segment in segments]
    assert ordered == sorted(ordered, reverse=True)


@pytest.mark.parity("panoptic_inference")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_panoptic_equals_the_slow_reference(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(
        seeds,
        counts,
        st.sampled_from([0.0, 0.3, 0.8]),
        st.sampled_from([0, 0.6, 0.8]),
        geometries,
        st.sampled_from(get_args(MaskFilter)),
    )
    def check(
        seed: int,
        queries: int,
        objects: float,
        overlap: float,
        geometry: Geometry,
        mask_filter: MaskFilter,
    ) -> None:
        maps, scored = scores(seed=seed, queries=queries)
        thresholds = (objects, overlap)
        compare_panoptic(parity, maps, scored, geometry, *thresholds, mask_filter=mask_filter)

    check()


@pytest.mark.parity("panoptic_inference")
@pytest.mark.parametrize("covered", [169, 170, 171])
def test_a_mask_may_keep_exactly_the_threshold(parity: Parity, covered: int) -> None:
    """255 of 425 pixels are 0.6 of them; one fewer is too few."""
    maps = torch.full((2, 17, 25), 9.0)
    maps[0].view(-1)[covered:] = -9.0
    scored = one_hot_scores([0, 2], [0.0, 0.2], classes=5)
    geometry = Geometry(padded=(17, 25), content=(17, 25), output=(17, 25))
    compare_panoptic(parity, maps, scored, geometry, 0.5, 0.6)
    _, segments = merged(maps, scored, geometry, 0.5, 0.6)
    assert len(segments) == (2 if covered <= 170 else 1)


def one_hot_scores(labels: list[int], void: list[float], *, classes: int) -> MaskScores:
    probs = torch.full((1, len(labels), classes), 0.1 / (classes - 1))
    probs[0, torch.arange(len(labels)), torch.tensor(labels)] = 0.9
    return MaskScores(probs, torch.tensor([void]), torch.ones(1, len(labels)))


def boxes(*columns: tuple[int, int]) -> Tensor:
    maps = torch.full((len(columns), 8, 8), -9.0)
    for mask, (start, stop) in zip(maps, columns, strict=True):
        mask[:, start:stop] = 9.0
    return maps


def merge(maps: Tensor, scored: MaskScores, **changes: Any) -> tuple[Tensor, list[Any]]:
    options: dict[str, Any] = {
        "is_thing": torch.tensor([True, False, True]),
        "mask_filter": "objectness",
        "object_threshold": 0.5,
        "overlap_threshold": 0.6,
    }
    return panoptic_inference(maps, scored, image=0, geometry=PLAIN, **{**options, **changes})


def test_panoptic_by_hand() -> None:
    """Two things of one class, one stuff class in two masks, one void mask, one mask overlaid."""
    maps = boxes((0, 2), (2, 4), (4, 5), (6, 8), (4, 6), (0, 3))
    scored = one_hot_scores([0, 0, 1, 1, 2, 2], [0.0, 0.01, 0.02, 0.03, 0.9, 0.3], classes=3)
    ids, segments = merge(maps, scored)
    assert [(s.id, s.category, s.is_thing) for s in segments] == [
        (1, 0, True),
        (2, 0, True),
        (3, 1, False),
    ]
    assert ids[0].tolist() == [1, 1, 2, 2, 3, 0, 3, 3]
    assert segments[2].score == pytest.approx(0.9 * 0.98)


def test_stuff_is_one_segment_and_things_are_not() -> None:
    maps, both = boxes((0, 3), (5, 8)), [0.1, 0.2]
    assert len(merge(maps, one_hot_scores([1, 1], both, classes=3))[1]) == 1
    assert len(merge(maps, one_hot_scores([0, 0], both, classes=3))[1]) == 2


def test_a_mask_is_kept_unless_void_wins_and_its_iou_has_no_say() -> None:
    """Best class 0.9: with 1 - void it is 0.9 (1 - v), against v. They are equal at 9 / 19."""
    void = [9 / 19 - 1e-3, 9 / 19 + 1e-3, 0.25, 0.05]
    scored = replace(one_hot_scores([0] * 4, void, classes=3), iou=torch.full((1, 4), 0.01))
    assert scored.kept("best_class", 0.0)[0].tolist() == [True, False, True, True]
    assert scored.kept("best_class", 0.8)[0].tolist() == [False, False, False, True]
    assert scored.kept("objectness", 0.4)[0].tolist() == [True, True, True, True]
    assert scored.kept("objectness", 0.8)[0].tolist() == [False, False, False, True]
    maps = boxes((0, 2), (2, 4), (4, 6), (6, 8))
    ids, _ = merge(maps, scored, mask_filter="best_class", object_threshold=0.0)
    assert [bool(column) for column in ids[0]] == [True] * 2 + [False] * 2 + [True] * 4


def test_no_object_no_segment() -> None:
    ids, segments = merge(boxes((0, 8)), one_hot_scores([0], [0.7], classes=3))
    assert not ids.any() and segments == []


def test_mask_that_is_mostly_overlaid_is_dropped_and_leaves_void() -> None:
    maps = boxes((0, 6), (0, 8))
    ids, segments = merge(maps, one_hot_scores([0, 2], [0.0, 0.1], classes=3))
    assert [s.category for s in segments] == [0]
    assert ids[0].tolist() == [1, 1, 1, 1, 1, 1, 0, 0]
    ids, segments = merge(
        maps, one_hot_scores([0, 2], [0.0, 0.1], classes=3), overlap_threshold=0.2
    )
    assert ids[0].tolist() == [1, 1, 1, 1, 1, 1, 2, 2]


def test_pixels_won_outside_a_mask_count_for_keeping_it_and_stay_void() -> None:
    """Mask2Former compares the pixels won, wherever they lie, with the mask's own area."""
    maps = torch.full((2, 8, 8), -9.0)
    maps[0, :, :2] = 9.0  # the better mask hides half of the other
    maps[1, :, :4] = 2.0
    maps[1, :, 4:] = -1.0  # won all the same: the better mask is even less sure there
    scored = one_hot_scores([0, 2], [0.0, 0.1], classes=3)
    ids, segments = merge(maps, scored, overlap_threshold=0.6)
    assert [s.category for s in segments] == [0, 2]
    assert ids[0].tolist() == [1, 1, 2, 2, 0, 0, 0, 0]


def test_masks_stay_as_they_are_for_the_next_variant() -> None:
    """At the masks' own size nothing is resized, so results could share their memory."""
    maps, scored = scores(seed=4)
    own = Geometry(padded=(4, 6), content=(4, 6), output=(4, 6))
    before, is_thing = maps.clone(), torch.tensor([True, False, True, False, True])
    semantic_inference(maps, scored, image=0, geometry=own)
    instance_inference(maps, scored, image=0, geometry=own, is_thing=is_thing, top_k=9)
    panoptic_inference(
        maps,
        scored,
        image=0,
        geometry=own,
        is_thing=is_thing,
        mask_filter="best_class",
        object_threshold=0.0,
        overlap_threshold=0.0,
    )
    assert torch.equal(maps, before)


# --- semantic


@pytest.mark.parity("semantic_inference")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_semantic_equals_the_slow_reference(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(seeds, counts, geometries)
    def check(seed: int, queries: int, geometry: Geometry) -> None:
        maps, scored = scores(seed=seed, queries=queries)
        labels = semantic_inference(maps, scored, image=0, geometry=geometry)
        assert labels.dtype == torch.int64
        parity.equal(labels, slow.semantic(geometry.restore(maps).sigmoid(), scored))

    check()


def test_semantic_ties_go_to_the_first_class() -> None:
    equal = MaskScores(torch.full((1, 1, 4), 0.25), torch.zeros(1, 1), torch.ones(1, 1))
    labels = semantic_inference(boxes((0, 8)), equal, image=0, geometry=PLAIN)
    assert not labels.any()


# --- instances


@pytest.mark.parity("instance_inference")
@pytest.mark.parametrize("examples", EXAMPLES)
def test_instances_equal_the_slow_reference(parity: Parity, examples: int) -> None:
    @settings(max_examples=examples)
    @given(seeds, counts, geometries, st.sampled_from([1, 7, 30, 999]))
    def check(seed: int, queries: int, geometry: Geometry, top_k: int) -> None:
        maps, scored = scores(seed=seed, queries=queries)
        masks, place, labels, values = instance_inference(
            maps, scored, image=0, geometry=geometry, is_thing=IS_THING, top_k=top_k
        )
        assert len(masks) == len(place.unique())
        probabilities = geometry.restore(maps).sigmoid()
        expected = slow.instances(probabilities, scored, IS_THING.tolist(), top_k)
        parity.equal(labels.tolist(), [k for _, k, _ in expected])
        parity.close(values.tolist(), [value for value, _, _ in expected], bound=1e-6)
        assert masks.dtype == torch.bool
        masks = masks[place]
        shown = np.array([(probabilities[q] > 0.5).numpy() for _, _, q in expected], bool)
        parity.equal(masks, shown.reshape(-1, *geometry.output))

    check()


def test_instances_without_things() -> None:
    maps, scored = scores(seed=5)
    masks, place, labels, values = instance_inference(
        maps,
        scored,
        image=0,
        geometry=PLAIN,
        is_thing=torch.zeros(5, dtype=torch.bool),
        top_k=10,
    )
    assert masks.shape == (0, 8, 8) and len(place) == len(labels) == len(values) == 0


# --- order and chunks


def everything(
    maps: Tensor,
    scored: MaskScores,
    is_thing: Tensor,
    *,
    geometry: Geometry = CROPPED,
    probabilities: Tensor | None = None,
) -> tuple[list[Any], Tensor]:
    """Panoptic, instance and semantic results; apart from them, the instances' scores."""
    made: dict[str, Any] = {"probabilities": probabilities}
    ids, segments = panoptic_inference(
        maps,
        scored,
        image=0,
        geometry=geometry,
        is_thing=is_thing,
        mask_filter="objectness",
        object_threshold=0.3,
        overlap_threshold=0.5,
        **made,
    )
    masks, place, labels, values = instance_inference(
        maps, scored, image=0, geometry=geometry, is_thing=is_thing, top_k=30, **made
    )
    semantic = semantic_inference(maps, scored, image=0, geometry=geometry, **made)
    found = [(s.id, s.category, s.score, s.is_thing) for s in segments]
    return [ids, found, masks[place], labels, semantic], values


def same_results(parity: Parity, first: Any, second: Any) -> None:
    """Maps, labels and order are the same; scores average pixels, which rounds."""
    parity.equal(first[0], second[0])
    parity.close(first[1], second[1], bound=1e-6)


def test_mask_logits_are_left_as_they_are() -> None:
    """Also where they have the size of the image already; one prediction serves many variants."""
    generator = torch.Generator().manual_seed(0)
    maps, scored = torch.randn(12, 14, 9, generator=generator), scores(seed=1)[1]
    before = maps.clone()
    geometry = Geometry(padded=(14, 9), content=(14, 9), output=(14, 9))
    results = everything(maps, scored, IS_THING, geometry=geometry)
    assert torch.equal(maps, before)
    again = everything(maps, scored, IS_THING, geometry=geometry)
    assert torch.equal(results[0][0], again[0][0])


@pytest.mark.parity("batching")
@settings(max_examples=15)
@given(seed=seeds, random=st.randoms())
def test_order_of_queries_does_not_matter(parity: Parity, seed: int, random: Any) -> None:
    maps, scored = scores(seed=seed, queries=20)
    order = list(range(20))
    random.shuffle(order)
    moved = MaskScores(scored.class_probs[:, order], scored.void[:, order], scored.iou[:, order])
    first, second = (
        everything(maps, scored, IS_THING),
        everything(maps[order], moved, IS_THING),
    )
    same_results(parity, second, first)


@pytest.mark.parity("batching")
@pytest.mark.parametrize("cells", [1, 200, 3000])
def test_strips_do_not_matter(parity: Parity, monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    is_thing = torch.arange(23) % 2 == 0
    for seed, geometry in itertools.product(range(4), (PLAIN, CROPPED)):
        maps, scored = scores(seed=seed, queries=40, classes=23)
        monkeypatch.setitem(STRIP_CELLS, "cpu", 1 << 22)
        whole = everything(maps, scored, is_thing, geometry=geometry)
        monkeypatch.setitem(STRIP_CELLS, "cpu", cells)
        same_results(parity, everything(maps, scored, is_thing, geometry=geometry), whole)


@pytest.mark.parametrize("cells", [1 << 22, 40 * 14 * 9])
def test_probabilities_made_before_change_nothing(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """Also in strips, which classes may need where the masks alone do not; and they stay whole."""
    is_thing = torch.arange(23) % 2 == 0
    monkeypatch.setitem(STRIP_CELLS, "cpu", cells)
    for seed, geometry in itertools.product(range(4), (PLAIN, CROPPED)):
        maps, scored = scores(seed=seed, queries=40, classes=23)
        made = full_probabilities(maps, geometry)
        assert made is not None
        before = made.clone()
        shared = everything(maps, scored, is_thing, geometry=geometry, probabilities=made)
        own = everything(maps, scored, is_thing, geometry=geometry)
        for first, second in zip((*shared[0], shared[1]), (*own[0], own[1]), strict=True):
            same = torch.equal(first, second) if isinstance(first, Tensor) else first == second
            assert same
        assert torch.equal(made, before)


def test_probabilities_of_large_images_are_not_made_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps, _ = scores(seed=0, queries=40)
    monkeypatch.setitem(STRIP_CELLS, "cpu", 40 * 14 * 9 - 1)
    assert full_probabilities(maps, CROPPED) is None


@settings(max_examples=30)
@given(seed=seeds, count=st.integers(1, 9))
def test_of_equal_masks_the_first_wins(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 3, (count, 5, 7), generator=generator) / 2
    first = [column.tolist().index(column.max()) for column in maps.flatten(1).T]
    assert first_argmax(maps).flatten().tolist() == first


@settings(max_examples=30)
@given(seed=seeds, sides=st.tuples(*[st.integers(1, 20)] * 4), data=st.data())
def test_rows_are_those_of_the_whole(seed: int, sides: tuple[int, ...], data: Any) -> None:
    """Bit for bit those of all rows at once, and but for rounding what ``restore`` makes."""
    maps = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(seed))
    geometry = Geometry(padded=(20, 24), content=(sides[0], sides[1]), output=(sides[2], sides[3]))
    start = data.draw(st.integers(0, sides[2] - 1))
    rows = slice(start, data.draw(st.integers(start + 1, sides[2])))
    found = restore_rows(maps, geometry, rows)
    assert torch.equal(found, restore_rows(maps, geometry, slice(0, sides[2]))[:, rows])
    assert_close(found, geometry.restore(maps)[:, rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parity("batching")
@pytest.mark.parametrize("cells", [1, 100_000])
def test_strips_decide_between_equal_classes_alone(
    parity: Parity, monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    """Each class has a twin of equal probability; products of other sizes round differently."""
    monkeypatch.setitem(STRIP_CELLS, "cpu", cells)
    generator = torch.Generator().manual_seed(0)
    half = (torch.randn(1, 100, 75, generator=generator) * 4).softmax(-1) / 2
    scored = MaskScores(
        torch.cat([half, half.flip(-1)], -1), *torch.rand(2, 1, 100, generator=generator)
    )
    maps = torch.randn(100, 64, 64, generator=generator) * 4
    geometry = Geometry(padded=(64, 64), content=(64, 64), output=(64, 64))
    labels = semantic_inference(maps, scored, image=0, geometry=geometry)
    sums = torch.einsum("qk,qhw->khw", scored.class_scores[0].double(), maps.sigmoid().double())
    parity.close(sums.gather(0, labels[None])[0], sums.amax(0), bound=1e-6)
