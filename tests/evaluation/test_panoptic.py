"""Panoptic quality: merging of classes, order of images, and bad input.

The numbers themselves are compared with panopticapi's in ``test_panoptic_parity.py``.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from possam.evaluation.panoptic import PanopticEvaluator
from possam.runtime.errors import InputError
from tests.support.pictures import Picture, evaluate, ids, kinds, random_picture


def picture(rng: np.random.Generator, *, classes: int) -> Picture:
    return random_picture(
        rng, size=(24, 24), classes=classes, segments=9, top_id=300, void=0.1, crowd=0.2
    )


def test_class_agnostic_quality_ignores_names() -> None:
    target = ids([[1, 1, 1, 1], [2, 2, 2, 2]])
    predicted = ids([[5, 5, 5, 6], [6, 6, 6, 6]])
    segments = {1: (0, False), 2: (0, False)}
    evaluator = evaluate([Picture(predicted, {5: 0, 6: 1}, target, segments)], 2)
    assert evaluator.class_agnostic().pq == pytest.approx((3 / 4 + 4 / 5) / 2)
    assert evaluator.result().pq == pytest.approx(0.75 / 1.5 / 2)


def test_class_agnostic_excuses_every_crowd_region() -> None:
    target = ids([[1, 1, 2, 2, 3, 3]])
    segments = {1: (0, True), 2: (1, True), 3: (0, False)}
    predicted = Picture(ids([[9, 9, 9, 9, 8, 8]]), {9: 2, 8: 1}, target, segments)
    evaluator = evaluate([predicted], 3)
    assert evaluator.class_agnostic().pq == 1.0
    assert evaluator.result().pq == 0.0


def test_order_of_updates_does_not_matter_after_arrange() -> None:
    rng = np.random.default_rng(0)
    pictures = [picture(rng, classes=4) for _ in range(6)]
    forward = evaluate(pictures, 4)
    backward = PanopticEvaluator(kinds(4))
    for number in reversed(range(6)):
        p = pictures[number]
        backward.update(number, p.predicted, p.predicted_segments, p.target, p.target_segments)
    backward.arrange(range(6))
    assert backward.result() == forward.result()
    assert np.array_equal(backward.counts().iou, forward.counts().iou)
    assert backward.class_agnostic() == forward.class_agnostic()
    with pytest.raises(InputError, match=r"image ids \[6\] lack a prediction"):
        backward.arrange(range(7))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renaming_ids_changes_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = picture(rng, classes=3)
    shift = 1_000_000
    moved = Picture(
        np.where(drawn.predicted > 0, drawn.predicted + shift, 0),
        {key + shift: value for key, value in drawn.predicted_segments.items()},
        drawn.target,
        drawn.target_segments,
    )
    first, second = evaluate([drawn], 3).result(), evaluate([moved], 3).result()
    assert first.pq == pytest.approx(second.pq, abs=1e-15, nan_ok=True)


def test_bad_input_is_named() -> None:
    target = ids([[1, 1]])
    evaluator = PanopticEvaluator(kinds(2))
    segments = {1: (0, False)}
    with pytest.raises(InputError, match=r"image 4.*size of the image"):
        evaluator.update(4, ids([[1]]), {1: 0}, target, segments)
    with pytest.raises(InputError, match=r"image 4: prediction: the PNG has ids \[3\]"):
        evaluator.update(4, ids([[3, 0]]), {}, target, segments)
    with pytest.raises(InputError, match=r"image 4: prediction: segments_info lists ids \[8\]"):
        evaluator.update(4, ids([[3, 0]]), {3: 0, 8: 0}, target, segments)
    with pytest.raises(InputError, match=r"unknown class indices \[2\]"):
        evaluator.update(4, ids([[3, 0]]), {3: 2}, target, segments)
    with pytest.raises(InputError, match="predicted segment ids must be in"):
        evaluator.update(4, ids([[1 << 24, 0]]), {1 << 24: 0}, target, segments)
    assert evaluator.image_ids == []
