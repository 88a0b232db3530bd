"""Classification and merging against hand-computed cases and slow, obvious references."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fakes import SMALL, random_text, small_possam
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from possam.errors import InputError
from possam.model.ensemble import geometric_ensemble, mase
from possam.model.inference import (
    Geometry,
    MaskScores,
    classify,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from possam.model.segmenter import RawPrediction

PLAIN = Geometry(padded=(8, 8), content=(8, 8), output=(8, 8))
CROPPED = Geometry(padded=(16, 24), content=(11, 21), output=(14, 9))


def raw_prediction(*, seed: int = 0, batch: int = 2, queries: int = 6) -> RawPrediction:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, queries, SMALL["embed_dim"])
    return RawPrediction(
        mask_logits=torch.randn(batch, queries, 4, 6, generator=generator) * 3,
        ldp_embeddings=F.normalize(torch.randn(shape, generator=generator), dim=-1),
        clip_embeddings=F.normalize(torch.randn(shape, generator=generator), dim=-1),
        iou=torch.rand(batch, queries, generator=generator),
        padded_size=(16, 24),
        image_size=(11, 21),
    )


def scores(*, seed: int, queries: int = 12, classes: int = 5) -> tuple[Tensor, MaskScores]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, queries, classes, generator=generator) * 2
    void = torch.rand(1, queries, generator=generator)
    iou = torch.rand(1, queries, generator=generator)
    maps = F.interpolate(
        torch.randn(1, queries, 2, 3, generator=generator) * 4, size=(4, 6), mode="bilinear"
    )
    return maps[0], MaskScores(logits.softmax(-1), void, iou)


def classified(raw: RawPrediction, **changes: Any) -> MaskScores:
    options: dict[str, Any] = {
        "possam": small_possam(),
        "clip_logit_scale": 20.0,
        "seen": torch.tensor([True, False, True, False]),
        "ensemble": "mase",
        "alpha": 0.4,
        "beta": 0.8,
        "mase_confidence": "class",
        "iou_weighting": True,
    }
    return classify(raw, random_text(classes=4), **{**options, **changes})


# --- classification


@pytest.mark.parametrize("ensemble", ["mase", "geometric", "ldp", "clip"])
def test_classify_by_the_formulas(ensemble: str) -> None:
    raw, text, model = raw_prediction(), random_text(classes=4), small_possam()
    seen = torch.tensor([True, False, True, False])
    logits = model.class_logits(raw.ldp_embeddings, text)
    p_ldp = logits[..., :4].softmax(-1)
    p_clip = (20.0 * text.similarity(raw.clip_embeddings)).softmax(-1)
    weights = {"seen": seen, "alpha": 0.4, "beta": 0.8}
    expected = {
        "mase": mase(p_ldp, p_clip, **weights, confidence="class"),
        "geometric": geometric_ensemble(p_ldp, p_clip, **weights),
        "ldp": p_ldp,
        "clip": p_clip,
    }[ensemble]
    out = classified(raw, ensemble=ensemble)
    assert_close(out.class_probs, expected)
    assert_close(out.class_probs.sum(-1), torch.ones(2, 6))
    assert_close(out.void, logits.softmax(-1)[..., 4])
    assert_close(out.scores, expected.amax(-1) * (1 - out.void) * raw.iou)


def test_iou_scales_masks_and_never_reorders_classes() -> None:
    raw = raw_prediction()
    weighted, plain = classified(raw), classified(raw, iou_weighting=False)
    assert torch.equal(weighted.labels, plain.labels)
    assert torch.equal(weighted.class_probs, plain.class_probs)
    assert_close(weighted.class_scores, plain.class_scores * raw.iou[..., None])
    without = RawPrediction(**{**raw.__dict__, "iou": None})
    assert_close(classified(without).scores, plain.scores)


def test_images_are_classified_independently() -> None:
    raw = raw_prediction()
    together = classified(raw)
    fields = {
        name: value[1:] if isinstance(value, Tensor) else value
        for name, value in raw.__dict__.items()
    }
    alone = classified(RawPrediction(**fields))
    assert_close(alone.class_scores[0], together.class_scores[1])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="seen"):
        classified(raw_prediction(), seen=torch.tensor([True]))
    with pytest.raises(InputError, match="mase, geometric, ldp, clip"):
        classified(raw_prediction(), ensemble="mean")


# --- geometry


def test_restoring_upsamples_crops_and_resizes() -> None:
    """A linear ramp stays a ramp; padding does not leak into the content."""
    ramp = (torch.arange(24.0) + 0.5).expand(1, 16, 24)
    small = F.interpolate(ramp[None], size=(4, 6), mode="bilinear", align_corners=False)[0]
    restored = Geometry(padded=(16, 24), content=(10, 16), output=(20, 32)).restore(small)
    assert restored.shape == (1, 20, 32)
    assert_close(restored[0, 5, 8:28], (torch.arange(8, 28) + 0.5) / 2)


# --- panoptic


Segments = list[tuple[int, list[tuple[int, int]]]]


def slow_panoptic(
    maps: Tensor,
    scored: MaskScores,
    geometry: Geometry,
    is_thing: list[bool],
    object_threshold: float,
    overlap_threshold: float,
) -> Segments:
    """Mask2Former's merging, pixel by pixel: (category, pixels) of each segment."""
    restored = geometry.restore(maps).sigmoid()
    weighted = (restored * scored.scores[0][:, None, None]).tolist()
    probabilities, void = restored.tolist(), scored.void[0].tolist()
    labels = scored.class_probs[0].argmax(-1).tolist()
    queries = [q for q in range(len(maps)) if 1 - void[q] > object_threshold]
    pixels = [(y, x) for y in range(geometry.output[0]) for x in range(geometry.output[1])]
    owner = {}
    if queries:
        owner = {(y, x): max(queries, key=lambda q: weighted[q][y][x]) for y, x in pixels}
    result: Segments = []
    stuff: dict[int, int] = {}
    for q in queries:
        inside = {(y, x) for y, x in pixels if probabilities[q][y][x] >= 0.5}
        won = {pixel for pixel, winner in owner.items() if winner == q}
        if not won & inside or len(won) / len(inside) < overlap_threshold:
            continue
        if not is_thing[labels[q]] and labels[q] in stuff:
            result[stuff[labels[q]]][1].extend(won & inside)
            continue
        if not is_thing[labels[q]]:
            stuff[labels[q]] = len(result)
        result.append((labels[q], list(won & inside)))
    return sorted((category, sorted(found)) for category, found in result)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 0.3, 0.8]),
    st.sampled_from([0.0, 0.5, 0.8]),
    st.sampled_from([PLAIN, CROPPED]),
)
def test_panoptic_equals_the_slow_reference(
    seed: int, object_threshold: float, overlap_threshold: float, geometry: Geometry
) -> None:
    maps, scored = scores(seed=seed, queries=20)  # more than are upsampled at a time
    is_thing = torch.tensor([True, False, True, False, False])
    ids, segments = panoptic_inference(
        maps,
        scored,
        image=0,
        geometry=geometry,
        is_thing=is_thing,
        object_threshold=object_threshold,
        overlap_threshold=overlap_threshold,
    )
    assert ids.dtype == torch.int32 and tuple(ids.shape) == geometry.output
    assert [segment.id for segment in segments] == list(range(1, len(segments) + 1))
    assert set(ids.unique().tolist()) - {0} == {segment.id for segment in segments}
    found = sorted(
        (segment.category, sorted(map(tuple, (ids == segment.id).nonzero().tolist())))
        for segment in segments
    )
    expected = slow_panoptic(
        maps, scored, geometry, is_thing.tolist(), object_threshold, overlap_threshold
    )
    assert found == expected
    assert all(segment.is_thing == bool(is_thing[segment.category]) for segment in segments)
    ordered = [segment.score for segment in segments]
    assert ordered == sorted(ordered, reverse=True)


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


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.randoms())
def test_order_of_queries_does_not_matter(seed: int, random: Any) -> None:
    maps, scored = scores(seed=seed, queries=20)
    order = list(range(20))
    random.shuffle(order)
    moved = MaskScores(scored.class_probs[:, order], scored.void[:, order], scored.iou[:, order])
    is_thing = torch.tensor([True, False, True, False, True])
    both = [
        panoptic_inference(
            m,
            s,
            image=0,
            geometry=CROPPED,
            is_thing=is_thing,
            object_threshold=0.3,
            overlap_threshold=0.5,
        )
        for m, s in ((maps, scored), (maps[order], moved))
    ]
    assert torch.equal(both[0][0], both[1][0]) and both[0][1] == both[1][1]
    labels = [
        semantic_inference(m, s, image=0, geometry=CROPPED, class_chunk=2)
        for m, s in ((maps, scored), (maps[order], moved))
    ]
    assert torch.equal(*labels)


def test_masks_stay_as_they_are_for_the_next_variant() -> None:
    """At the masks' own size nothing is resized, so results could share their memory."""
    maps, scored = scores(seed=4)
    own = Geometry(padded=(4, 6), content=(4, 6), output=(4, 6))
    before, is_thing = maps.clone(), torch.tensor([True, False, True, False, True])
    semantic_inference(maps, scored, image=0, geometry=own, class_chunk=2)
    instance_inference(maps, scored, image=0, geometry=own, is_thing=is_thing, top_k=9)
    panoptic_inference(
        maps,
        scored,
        image=0,
        geometry=own,
        is_thing=is_thing,
        object_threshold=0.0,
        overlap_threshold=0.0,
    )
    assert torch.equal(maps, before)


# --- semantic


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("geometry", [PLAIN, CROPPED])
def test_semantic_is_the_plain_sum_for_every_chunk(chunk: int, geometry: Geometry) -> None:
    maps, scored = scores(seed=3)
    probabilities = geometry.restore(maps).sigmoid()
    total = torch.einsum("qk,qhw->khw", scored.class_scores[0], probabilities)
    labels = semantic_inference(maps, scored, image=0, geometry=geometry, class_chunk=chunk)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, total.argmax(0))


def test_semantic_ties_go_to_the_first_class_in_every_chunk() -> None:
    equal = MaskScores(torch.full((1, 1, 4), 0.25), torch.zeros(1, 1), torch.ones(1, 1))
    for chunk in (1, 3, 4):
        labels = semantic_inference(
            boxes((0, 8)), equal, image=0, geometry=PLAIN, class_chunk=chunk
        )
        assert not labels.any()


# --- instances


@pytest.mark.parametrize("top_k", [1, 7, 30, 999])
def test_instances_equal_the_slow_reference(top_k: int) -> None:
    maps, scored = scores(seed=5, queries=20)
    is_thing = torch.tensor([True, False, True, False, True])
    masks, labels, values = instance_inference(
        maps, scored, image=0, geometry=CROPPED, is_thing=is_thing, top_k=top_k
    )
    pairs = sorted(
        ((float(scored.class_scores[0, q, k]), q, k) for q in range(20) for k in range(5)),
        reverse=True,
    )[:top_k]
    probabilities = CROPPED.restore(maps).sigmoid()
    expected = []
    for value, q, k in pairs:
        if is_thing[k]:
            inside = probabilities[q] > 0.5
            quality = float(probabilities[q][inside].mean()) if inside.any() else 0.0
            expected.append((value * quality, k, q))
    expected.sort(reverse=True)
    assert labels.tolist() == [k for _, k, _ in expected]
    assert values.tolist() == pytest.approx([value for value, _, _ in expected])
    assert masks.shape == (len(expected), *CROPPED.output) and masks.dtype == torch.bool
    for mask, (_, _, q) in zip(masks, expected, strict=True):
        assert torch.equal(mask, probabilities[q] > 0.5)


def test_instances_without_things() -> None:
    maps, scored = scores(seed=5)
    masks, labels, values = instance_inference(
        maps,
        scored,
        image=0,
        geometry=PLAIN,
        is_thing=torch.zeros(5, dtype=torch.bool),
        top_k=10,
    )
    assert masks.shape == (0, 8, 8) and len(labels) == len(values) == 0
