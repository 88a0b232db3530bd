"""Panoptic quality equals panopticapi's to the last digit: by hand, at random, at the limits."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from possam.evaluation.panoptic import count_array_pairs
from possam.runtime.files import write_json
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity
from tests.support.pictures import Picture, compare, evaluate, ids, random_picture, write

panopticapi = LazyModule("panopticapi.evaluation")

TOP = (1 << 24) - 1
FEATURES = {
    "void",
    "crowd",
    "two crowd regions of one class",
    "unmatched prediction",
    "unmatched ground truth",
    "excused prediction",
    "more than 256 segments",
    "id above 65535",
    "segment of one pixel",
    "empty prediction",
    "empty ground truth",
}


def features(picture: Picture, classes: int) -> set[str]:
    """What of :data:`FEATURES` a picture has."""
    counts = evaluate([picture], classes).counts()
    crowds = [category for category, crowd in picture.target_segments.values() if crowd]
    drawn = set(np.unique(picture.predicted).tolist()) | set(np.unique(picture.target).tolist())
    areas = np.unique(picture.target[picture.target > 0], return_counts=True)[1]
    matched, unmatched = int(counts.tp.sum()), int(counts.fp.sum())
    found = {
        "void": (picture.target == 0).any(),
        "crowd": bool(crowds),
        "two crowd regions of one class": len(crowds) > len(set(crowds)),
        "unmatched prediction": unmatched > 0,
        "unmatched ground truth": counts.fn.sum() > 0,
        "excused prediction": len(picture.predicted_segments) > matched + unmatched,
        "more than 256 segments": len(picture.target_segments) > 256,
        "id above 65535": max(drawn) > 65_535,
        "segment of one pixel": (areas == 1).any(),
        "empty prediction": not picture.predicted_segments,
        "empty ground truth": not picture.target_segments,
    }
    return {name for name, present in found.items() if present}


@pytest.mark.parity("panoptic_quality")
@pytest.mark.parametrize("examples", [40, pytest.param(1000, marks=pytest.mark.full_size)])
def test_random_pairs(parity: Parity, tmp_path: Path, examples: int) -> None:
    """``examples`` times one to six pairs of panoptic maps, which have every feature among them."""
    appeared: set[str] = set()

    @settings(max_examples=examples)
    @given(
        seed=st.integers(0, 2**32 - 1),
        images=st.integers(1, 6),
        size=st.sampled_from([(1, 1), (7, 5), (24, 32)]),
        classes=st.integers(1, 6),
        segments=st.sampled_from([1, 4, 12, 500]),
        top_id=st.sampled_from([600, 70_000, TOP + 1]),
        void=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        crowd=st.sampled_from([0.0, 0.4]),
    )
    @example(
        seed=1, images=2, size=(24, 32), classes=3, segments=500, top_id=TOP, void=0.1, crowd=0.1
    )
    def check(seed, images, size, classes, segments, top_id, void, crowd) -> None:
        rng = np.random.default_rng(seed)
        pictures = [
            random_picture(
                rng,
                size=size,
                classes=classes,
                segments=segments,
                top_id=top_id,
                void=void,
                crowd=crowd,
            )
            for _ in range(images)
        ]
        compare(parity, pictures, classes, tmp_path)
        for picture in pictures:
            appeared.update(features(picture, classes))

    check()
    assert appeared == FEATURES


HAND: dict[str, tuple[Picture, dict[int, tuple[float, float, float]]]] = {
    "IoU of 3/4 and 4/5": (
        Picture(
            ids([[5, 5, 5, 6], [6, 6, 6, 6]]),
            {5: 0, 6: 0},
            ids([[1, 1, 1, 1], [2, 2, 2, 2]]),
            {1: (0, False), 2: (0, False)},
        ),
        {0: ((3 / 4 + 4 / 5) / 2, (3 / 4 + 4 / 5) / 2, 1.0)},
    ),
    "the right segment under a wrong name is a miss and a false alarm": (
        Picture(
            ids([[5, 5, 5, 6], [6, 6, 6, 6]]),
            {5: 0, 6: 1},
            ids([[1, 1, 1, 1], [2, 2, 2, 2]]),
            {1: (0, False), 2: (0, False)},
        ),
        {0: (0.75 / 1.5, 0.75, 1 / 1.5), 1: (0.0, 0.0, 0.0)},
    ),
    "an IoU of exactly one half is no match": (
        Picture(ids([[7, 7]]), {7: 0}, ids([[1, 2]]), {1: (0, False), 2: (1, False)}),
        {0: (0.0, 0.0, 0.0), 1: (0.0, 0.0, 0.0)},
    ),
    "void counts for no union": (
        Picture(ids([[9, 9, 9, 0, 0]]), {9: 0}, ids([[1, 1, 0, 0, 0]]), {1: (0, False)}),
        {0: (1.0, 1.0, 1.0)},
    ),
    "void of the prediction counts for the union": (
        Picture(ids([[9, 9, 0]]), {9: 0}, ids([[1, 1, 1]]), {1: (0, False)}),
        {0: (2 / 3, 2 / 3, 1.0)},
    ),
    "a false alarm that is mostly on void is excused": (
        Picture(ids([[0, 9, 9, 9, 0]]), {9: 1}, ids([[1, 1, 0, 0, 0]]), {1: (0, False)}),
        {0: (0.0, 0.0, 0.0)},
    ),
    "half on void is not enough": (
        Picture(ids([[9, 9, 9, 9, 0]]), {9: 1}, ids([[1, 1, 0, 0, 0]]), {1: (0, False)}),
        {0: (0.0, 0.0, 0.0), 1: (0.0, 0.0, 0.0)},
    ),
    "a crowd region excuses its own class and is no miss": (
        Picture(
            ids([[9, 9, 9, 8, 8, 8]]),
            {9: 0, 8: 1},
            ids([[1, 1, 1, 1, 2, 2]]),
            {1: (0, True), 2: (1, False)},
        ),
        {1: (2 / 3, 2 / 3, 1.0)},
    ),
    "a crowd region excuses no other class": (
        Picture(
            ids([[9, 9, 9, 0, 0, 0]]),
            {9: 1},
            ids([[1, 1, 1, 1, 2, 2]]),
            {1: (0, True), 2: (1, False)},
        ),
        {1: (0.0, 0.0, 0.0)},
    ),
    "void and crowd together excuse": (
        Picture(
            ids([[9, 9, 9, 9, 9]]),
            {9: 0},
            ids([[1, 1, 0, 2, 2]]),
            {1: (0, True), 2: (1, False)},
        ),
        {1: (0.0, 0.0, 0.0)},
    ),
    "an empty prediction misses everything": (
        Picture(ids([[0, 0]]), {}, ids([[1, 2]]), {1: (0, False), 2: (1, False)}),
        {0: (0.0, 0.0, 0.0), 1: (0.0, 0.0, 0.0)},
    ),
    "an image with nothing but void has nothing to be wrong about": (
        Picture(ids([[3, 3]]), {3: 0}, ids([[0, 0]]), {}),
        {},
    ),
    "the ground truth itself is perfect, segments of one pixel and the largest id included": (
        Picture(
            ids([[1, 1, TOP], [0, 3, 3]]),
            {1: 0, TOP: 2, 3: 2},
            ids([[1, 1, TOP], [0, 3, 3]]),
            {1: (0, False), TOP: (2, False), 3: (2, False)},
        ),
        {0: (1.0, 1.0, 1.0), 2: (1.0, 1.0, 1.0)},
    ),
    "ids that collide in 32 bits": (
        Picture(
            ids([[4, 4, 4, 4, 5, 5]]),
            {4: 0, 5: 1},
            ids([[1, 1, 1, 257, 257, 65_537]]),
            {1: (0, False), 257: (1, False), 65_537: (2, False)},
        ),
        {0: (3 / 4, 3 / 4, 1.0), 1: (0.0, 0.0, 0.0), 2: (0.0, 0.0, 0.0)},
    ),
}


@pytest.mark.parity("panoptic_quality")
@pytest.mark.parametrize("case", HAND)
def test_cases_by_hand(parity: Parity, tmp_path: Path, case: str) -> None:
    picture, expected = HAND[case]
    result = evaluate([picture], 4).result()
    parity.equal(result.per_class, expected)
    assert result.classes == len(expected)
    if expected:
        means = np.mean(list(expected.values()), axis=0)
        parity.equal(np.array([result.pq, result.sq, result.rq]), means)
    compare(parity, [picture], 4, tmp_path)


@pytest.mark.parity("panoptic_quality")
def test_pairs_of_ids_are_counted_in_64_bits(parity: Parity) -> None:
    """In 32 bits, 1 and 257 beside the same id are one pair, and the largest ids overflow."""
    target, predicted = ids([[1, 257, 65_537, TOP]]), ids([[4, 4, 4, TOP]])
    expected = [(1, 4, 1), (257, 4, 1), (65_537, 4, 1), (TOP, TOP, 1)]
    parity.equal(count_array_pairs(target, predicted), expected)
    assert len({(t << 24 | p) % 2**32 for t, p, _ in expected}) == 2


@pytest.mark.parity("panoptic_quality")
def test_a_segment_for_every_few_pixels(parity: Parity, tmp_path: Path) -> None:
    """400 segments with ids around 65536, a fifth of the pixels under the neighbour's id."""
    rng = np.random.default_rng(3)
    size = 40
    target = (np.arange(size * size).reshape(size, size) // 4) + 65_536 - 7
    predicted = np.where(rng.random((size, size)) < 0.2, target + 1, target)
    predicted[0, 0] = TOP
    picture = Picture(
        predicted,
        {int(k): int(k) % 3 for k in np.unique(predicted)},
        target,
        {int(k): (int(k) % 3, False) for k in np.unique(target)},
    )
    assert len(picture.target_segments) == 400
    compare(parity, [picture], 3, tmp_path)
    assert 0 < evaluate([picture], 3).result().pq < 1


@pytest.mark.parity("panoptic_quality")
def test_the_whole_panopticapi_program(parity: Parity, tmp_path: Path) -> None:
    """pq_compute on several cores: sums round in another order."""
    rng = np.random.default_rng(5)
    pictures = [
        random_picture(
            rng, size=(24, 24), classes=4, segments=9, top_id=70_000, void=0.1, crowd=0.3
        )
        for _ in range(5)
    ]
    paths = [tmp_path / "target.json", tmp_path / "predicted.json"]
    for path, content in zip(paths, write(pictures, 4, tmp_path), strict=True):
        write_json(path, content)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = panopticapi.pq_compute(*map(str, paths))
    ours = evaluate(pictures, 4)
    for name, subset in (("All", range(4)), ("Things", [0, 2]), ("Stuff", [1, 3])):
        result = ours.result(subset)
        values = {key: getattr(result, key) for key in ("pq", "sq", "rq")}
        parity.equal(values, {key: theirs[name][key] for key in values})
