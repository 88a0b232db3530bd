"""Panoptic quality: panopticapi as oracle, bit for bit, and cases worked out by hand."""

import contextlib
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.evaluation import PQStat, pq_compute, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from possam.errors import InputError
from possam.evaluation.panoptic import PanopticEvaluator, count_pairs
from possam.files import read_json, write_json


@dataclass(frozen=True)
class Kind:
    """A category, as far as PQ is concerned."""

    index: int
    is_thing: bool


@dataclass
class Picture:
    """Prediction and ground truth of one image."""

    predicted: np.ndarray
    predicted_segments: dict[int, int]
    target: np.ndarray
    target_segments: dict[int, tuple[int, bool]]


def kinds(count: int) -> list[Kind]:
    return [Kind(index, index % 2 == 0) for index in range(count)]


def evaluate(pictures: list[Picture], count: int) -> PanopticEvaluator:
    evaluator = PanopticEvaluator(kinds(count))
    for number, p in enumerate(pictures):
        evaluator.update(number, p.predicted, p.predicted_segments, p.target, p.target_segments)
    return evaluator


def write(pictures: list[Picture], count: int, folder: Path) -> tuple[Path, Path]:
    """Write both sides in COCO's format, for panopticapi."""
    categories = [{"id": k.index, "isthing": int(k.is_thing)} for k in kinds(count)]
    paths = []
    for side in ("target", "predicted"):
        (folder / side).mkdir(parents=True, exist_ok=True)
        annotations = []
        for number, picture in enumerate(pictures):
            ids = getattr(picture, side)
            name = f"{number}.png"
            Image.fromarray(id2rgb(ids.astype(np.uint32))).save(folder / side / name)
            segments = getattr(picture, f"{side}_segments")
            info = []
            for key, value in segments.items():
                category, crowd = value if isinstance(value, tuple) else (value, False)
                area = int((ids == key).sum())
                info.append(
                    {"id": key, "category_id": category, "area": area, "iscrowd": int(crowd)}
                )
            annotations.append({"image_id": number, "file_name": name, "segments_info": info})
        path = folder / f"{side}.json"
        write_json(path, {"annotations": annotations, "categories": categories})
        paths.append(path)
    return paths[0], paths[1]


def panopticapi(pictures: list[Picture], count: int, folder: Path) -> tuple[dict, PQStat]:
    """Categories, and panopticapi's totals as summed in one process."""
    target, predicted = write(pictures, count, folder)
    pairs = list(
        zip(read_json(target)["annotations"], read_json(predicted)["annotations"], strict=True)
    )
    categories = {k.index: {"isthing": int(k.is_thing)} for k in kinds(count)}
    with contextlib.redirect_stdout(io.StringIO()):
        totals = pq_compute_single_core(
            0, pairs, str(folder / "target"), str(folder / "predicted"), categories
        )
    return categories, totals


def random_picture(
    rng: np.random.Generator, *, size: int, classes: int, segments: int, top_id: int, crowd: float
) -> Picture:
    """Ground truth in blocks; a prediction that keeps, splits, renames or drops segments."""

    def ids(number: int) -> np.ndarray:
        return 1 + rng.choice(top_id - 1, size=number, replace=False)

    keys = ids(segments)
    choice = rng.integers(-1, segments, (size, size))
    smooth = np.repeat(np.repeat(choice[::3, ::3], 3, 0), 3, 1)[:size, :size]
    target = np.where(smooth < 0, 0, keys[smooth])
    noisy = np.where(rng.random((size, size)) < rng.uniform(0, 0.4), choice, smooth)
    new_keys = ids(segments)
    predicted = np.where(noisy < 0, 0, new_keys[noisy])
    if rng.random() < 0.1:
        predicted = np.zeros_like(predicted)
    classes_of = rng.integers(0, classes, segments)
    changed = np.where(rng.random(segments) < 0.3, rng.integers(0, classes, segments), classes_of)
    in_target, in_predicted = set(target.flat), set(predicted.flat)
    crowded: set[int] = set()
    target_segments = {}
    for key, category in zip(keys.tolist(), classes_of.tolist(), strict=True):
        if key in in_target:
            is_crowd = category not in crowded and rng.random() < crowd
            if is_crowd:
                crowded.add(category)
            target_segments[key] = (category, is_crowd)
    predicted_segments = {
        key: category
        for key, category in zip(new_keys.tolist(), changed.tolist(), strict=True)
        if key in in_predicted
    }
    return Picture(predicted, predicted_segments, target, target_segments)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 4),
    size=st.sampled_from([1, 7, 24]),
    classes=st.integers(1, 6),
    segments=st.integers(1, 12),
    top_id=st.sampled_from([16, 300, 70_000, 1 << 24]),
    crowd=st.sampled_from([0.0, 0.4]),
)
def test_equals_panopticapi_to_the_last_digit(
    tmp_path_factory: pytest.TempPathFactory, seed, images, size, classes, segments, top_id, crowd
) -> None:
    rng = np.random.default_rng(seed)
    pictures = [
        random_picture(
            rng, size=size, classes=classes, segments=segments, top_id=top_id, crowd=crowd
        )
        for _ in range(images)
    ]
    evaluator = evaluate(pictures, classes)
    categories, totals = panopticapi(pictures, classes, tmp_path_factory.mktemp("pq"))
    counts = evaluator.counts()
    for k in range(classes):
        stat = totals.pq_per_cat[k]
        assert (counts.tp[:, k].sum(), counts.fp[:, k].sum(), counts.fn[:, k].sum()) == (
            stat.tp,
            stat.fp,
            stat.fn,
        )
        assert counts.iou[:, k].sum() == pytest.approx(stat.iou, abs=1e-12)
    for wanted, subset in (
        (None, range(classes)),
        (True, range(0, classes, 2)),
        (False, range(1, classes, 2)),
    ):
        result = evaluator.result(subset)
        if result.classes == 0:
            assert math.isnan(result.pq)
            continue
        theirs, per_class = totals.pq_average(categories, isthing=wanted)
        assert (result.pq, result.sq, result.rq, result.classes) == (
            theirs["pq"],
            theirs["sq"],
            theirs["rq"],
            theirs["n"],
        )
        for k, values in result.per_class.items():
            assert values == tuple(per_class[k][name] for name in ("pq", "sq", "rq"))


def test_many_segments_and_large_ids(tmp_path: Path) -> None:
    """More than 256 segments, ids above 65535 that collide in 16 bits, segments of one pixel."""
    rng = np.random.default_rng(3)
    size = 40
    target = (np.arange(size * size).reshape(size, size) // 4) + 65_536 - 7
    predicted = np.where(rng.random((size, size)) < 0.2, target + 1, target)
    lone = predicted.copy()
    lone[0, 0] = (1 << 24) - 1
    target_segments = {int(k): (int(k) % 3, False) for k in np.unique(target)}
    picture = Picture(lone, {int(k): int(k) % 3 for k in np.unique(lone)}, target, target_segments)
    evaluator = evaluate([picture], 3)
    assert len(target_segments) == 400
    categories, totals = panopticapi([picture], 3, tmp_path)
    theirs, _ = totals.pq_average(categories, isthing=None)
    result = evaluator.result()
    assert (result.pq, result.sq, result.rq) == (theirs["pq"], theirs["sq"], theirs["rq"])
    assert 0 < result.pq < 1


def test_equals_the_whole_panopticapi_program(tmp_path: Path) -> None:
    """pq_compute on several cores: sums round in another order, hence the tolerance."""
    rng = np.random.default_rng(5)
    pictures = [
        random_picture(rng, size=24, classes=4, segments=9, top_id=70_000, crowd=0.3)
        for _ in range(5)
    ]
    target, predicted = write(pictures, 4, tmp_path)
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = pq_compute(str(target), str(predicted))
    ours = evaluate(pictures, 4)
    for name, subset in (("All", range(4)), ("Things", [0, 2]), ("Stuff", [1, 3])):
        result = ours.result(subset)
        for key in ("pq", "sq", "rq"):
            assert getattr(result, key) == pytest.approx(theirs[name][key], abs=1e-14)


def ids(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


def test_worked_example() -> None:
    """Top row 1, bottom row 2; predicted 5 meets 1 with IoU 3/4, predicted 6 meets 2 with 4/5."""
    target = ids([[1, 1, 1, 1], [2, 2, 2, 2]])
    predicted = ids([[5, 5, 5, 6], [6, 6, 6, 6]])
    segments = {1: (0, False), 2: (0, False)}
    both = evaluate([Picture(predicted, {5: 0, 6: 0}, target, segments)], 1).result()
    assert (both.pq, both.rq) == (pytest.approx((3 / 4 + 4 / 5) / 2), 1.0)
    # Segment 6 under a wrong name: class 0 has one match and one miss, class 1 one false alarm.
    evaluator = evaluate([Picture(predicted, {5: 0, 6: 1}, target, segments)], 2)
    first = evaluator.result([0])
    assert (first.pq, first.sq, first.rq) == pytest.approx((0.75 / 1.5, 0.75, 1 / 1.5))
    assert evaluator.result([1]).pq == 0.0
    assert evaluator.result().pq == pytest.approx(0.75 / 1.5 / 2)
    assert evaluator.class_agnostic().pq == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_iou_of_exactly_one_half_is_no_match() -> None:
    picture = Picture(ids([[7, 7]]), {7: 0}, ids([[1, 2]]), {1: (0, False), 2: (1, False)})
    assert evaluate([picture], 2).result([0]).rq == 0.0


def test_void_counts_for_no_union_and_excuses_false_alarms() -> None:
    target = ids([[1, 1, 0, 0, 0, 0]])
    matched = Picture(ids([[9, 9, 9, 0, 0, 0]]), {9: 0}, target, {1: (0, False)})
    assert evaluate([matched], 1).result().pq == 1.0
    mostly_void = Picture(ids([[0, 9, 9, 9, 0, 0]]), {9: 1}, target, {1: (0, False)})
    assert evaluate([mostly_void], 2).counts().fp.sum() == 0
    half_void = Picture(ids([[9, 9, 9, 9, 0, 0]]), {9: 1}, target, {1: (0, False)})
    assert evaluate([half_void], 2).counts().fp.sum() == 1


def test_crowd_excuses_only_its_own_class() -> None:
    target = ids([[1, 1, 1, 1, 2, 2]])
    segments = {1: (0, True), 2: (1, False)}
    for category, alarms in ((0, 0), (1, 1)):
        predicted = Picture(ids([[9, 9, 9, 0, 0, 0]]), {9: category}, target, segments)
        counts = evaluate([predicted], 2).counts()
        assert counts.fp.sum() == alarms
        assert counts.fn.tolist() == [[0, 1]]


def test_class_agnostic_excuses_every_crowd_region() -> None:
    target = ids([[1, 1, 2, 2, 3, 3]])
    segments = {1: (0, True), 2: (1, True), 3: (0, False)}
    predicted = Picture(ids([[9, 9, 9, 9, 8, 8]]), {9: 2, 8: 1}, target, segments)
    evaluator = evaluate([predicted], 3)
    assert evaluator.class_agnostic().pq == 1.0
    assert evaluator.result().pq == 0.0


def test_prediction_of_the_ground_truth_is_perfect_and_absent_classes_do_not_count() -> None:
    target = ids([[1, 1, 2], [0, 3, 3]])
    segments = {1: (0, False), 2: (2, False), 3: (2, False)}
    picture = Picture(target, {1: 0, 2: 2, 3: 2}, target, segments)
    result = evaluate([picture], 5).result()
    assert (result.pq, result.sq, result.rq, result.classes) == (1.0, 1.0, 1.0, 2)


def test_empty_prediction_misses_everything() -> None:
    target = ids([[1, 2]])
    picture = Picture(ids([[0, 0]]), {}, target, {1: (0, False), 2: (1, False)})
    result = evaluate([picture], 3).result()
    assert (result.pq, result.classes) == (0.0, 2)


def test_order_of_updates_does_not_matter_after_arrange() -> None:
    rng = np.random.default_rng(0)
    pictures = [
        random_picture(rng, size=24, classes=4, segments=9, top_id=300, crowd=0.2) for _ in range(6)
    ]
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
    picture = random_picture(rng, size=24, classes=3, segments=8, top_id=300, crowd=0.2)
    shift = 1_000_000
    moved = Picture(
        np.where(picture.predicted > 0, picture.predicted + shift, 0),
        {key + shift: value for key, value in picture.predicted_segments.items()},
        picture.target,
        picture.target_segments,
    )
    first, second = evaluate([picture], 3).result(), evaluate([moved], 3).result()
    assert first.pq == pytest.approx(second.pq, abs=1e-15, nan_ok=True)


def test_pairs_of_the_largest_ids_do_not_overflow() -> None:
    top = (1 << 24) - 1
    assert count_pairs(ids([[top, 0]]), ids([[top, top]])) == [(0, top, 1), (top, top, 1)]


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
