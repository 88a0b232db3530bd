"""Bootstrap over images: scipy as oracle, resamples as repeated images, and honest coverage."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from possam.evaluation.instance import IOU_LEVELS, InstanceMatches
from possam.evaluation.options import Bootstrap
from possam.evaluation.panoptic import PanopticCounts
from possam.evaluation.semantic import SemanticCounts, SemanticEvaluator
from possam.evaluation.statistics import (
    ImageStatistics,
    bootstrap_intervals,
    centred_interval,
    class_subsets,
    resample,
    resample_weights,
)
from possam.runtime.errors import InputError

THINGS = (True, False, True, False)
SEEN = (True, True, False, False)


def panoptic(rng: np.random.Generator, images: int, classes: int) -> PanopticCounts:
    tp, fp, fn = (rng.poisson(0.6, (images, classes)) for _ in range(3))
    return PanopticCounts(tp, fp, fn, tp * rng.uniform(0.5, 1.0, (images, classes)))


def statistics(seed: int, images: int = 12) -> ImageStatistics:
    rng = np.random.default_rng(seed)
    classes = len(THINGS)
    both = rng.integers(0, 50, (images, classes)) * (rng.random((images, classes)) < 0.6)
    detections = 40
    matched = rng.random((detections, len(IOU_LEVELS))) < 0.4
    category = np.sort(rng.choice([0, 2], detections))
    order = np.lexsort((rng.integers(0, images, detections), category))
    return ImageStatistics(
        image_ids=tuple(range(100, 100 + images)),
        is_thing=THINGS,
        seen=SEEN,
        panoptic=panoptic(rng, images, classes),
        class_agnostic=panoptic(rng, images, 1),
        semantic=SemanticCounts(both, both + rng.integers(0, 9, both.shape), both + both // 3),
        instances=InstanceMatches(
            image=rng.integers(0, images, detections),
            category=category[order],
            score=rng.random(detections),
            matched=matched,
            ignored=(rng.random(matched.shape) < 0.1) & ~matched,
            targets=rng.integers(0, 4, (images, classes)) * np.array(THINGS),
        ),
    )


def repeat(table: ImageStatistics, draw: np.ndarray) -> ImageStatistics:
    """The same data set with the images ``draw``, repeats and all (no instances)."""
    p, c, s = table.panoptic, table.class_agnostic, table.semantic
    assert p is not None and c is not None and s is not None
    return ImageStatistics(
        image_ids=tuple(range(len(draw))),
        is_thing=table.is_thing,
        seen=table.seen,
        panoptic=PanopticCounts(p.tp[draw], p.fp[draw], p.fn[draw], p.iou[draw]),
        class_agnostic=PanopticCounts(c.tp[draw], c.fp[draw], c.fn[draw], c.iou[draw]),
        semantic=SemanticCounts(s.intersection[draw], s.predicted[draw], s.target[draw]),
    )


def test_weights_are_the_resamples_of_the_generator() -> None:
    weights = resample_weights(7, samples=50, seed=3)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all()
    draws = np.random.default_rng(3).integers(0, 7, (50, 7))
    for row, draw in zip(weights, draws, strict=True):
        assert row.tolist() == [list(draw).count(i) for i in range(7)]
    assert np.array_equal(weights, resample_weights(7, samples=50, seed=3))
    assert not np.array_equal(weights, resample_weights(7, samples=50, seed=4))


def test_weighted_metrics_equal_those_of_repeated_images() -> None:
    table = statistics(0)
    draws = np.random.default_rng(9).integers(0, 12, (20, 12))
    weights = np.stack([np.bincount(draw, minlength=12) for draw in draws]).astype(float)
    weighted = table.metrics(weights)
    for number, draw in enumerate(draws):
        for name, value in repeat(table, draw).metrics().items():
            assert weighted[name][number] == pytest.approx(value[0], abs=1e-10)


def test_intervals_equal_scipy() -> None:
    table = statistics(1)
    samples, seed = 200, 11

    def metric(draw: np.ndarray) -> float:
        return float(repeat(table, draw).metrics()["pq"][0])

    theirs = stats.bootstrap(
        (np.arange(12),),
        metric,
        vectorized=False,
        n_resamples=samples,
        method="percentile",
        confidence_level=0.9,
        rng=np.random.default_rng(seed),
    )
    bias = theirs.bootstrap_distribution.mean() - metric(np.arange(12))
    low, high = theirs.confidence_interval
    ours = bootstrap_intervals(table, bootstrap=Bootstrap(samples, seed, 0.9))["pq"]
    assert ours == pytest.approx((low - bias, high - bias), abs=1e-9)


def test_the_interval_of_several_seeds_is_that_of_their_mean_on_the_same_images() -> None:
    tables = [statistics(seed) for seed in (1, 2, 3)]
    draws = np.random.default_rng(7).integers(0, 12, (60, 12))
    means = np.array(
        [np.mean([repeat(t, draw).metrics()["pq"][0] for t in tables]) for draw in draws]
    )
    estimate = np.mean([table.metrics()["pq"][0] for table in tables])
    low, high = np.quantile(means, [0.05, 0.95]) + estimate - means.mean()
    found = bootstrap_intervals(*tables, bootstrap=Bootstrap(60, 7, 0.9))
    assert found["pq"] == pytest.approx((low, high), abs=1e-9)
    same = bootstrap_intervals(tables[0], tables[0], bootstrap=Bootstrap(60, 7, 0.9))
    alone = bootstrap_intervals(tables[0], bootstrap=Bootstrap(60, 7, 0.9))
    for name, bounds in alone.items():
        assert same[name] == pytest.approx(bounds, abs=1e-12)
    with pytest.raises(InputError, match=r"\(12 and 11\)"):
        bootstrap_intervals(tables[0], statistics(0, images=11), bootstrap=Bootstrap(5, 0, 0.9))


def test_intervals_of_all_metrics_are_ordered_and_repeatable() -> None:
    table = statistics(2)
    first = bootstrap_intervals(table, bootstrap=Bootstrap(150, 0, 0.95))
    assert first == bootstrap_intervals(table, bootstrap=Bootstrap(150, 0, 0.95))
    wide = bootstrap_intervals(table, bootstrap=Bootstrap(150, 0, 0.99))
    points = table.metrics()
    assert set(first) == set(points)
    for name, (low, high) in first.items():
        assert 0 <= low < high <= 100
        assert wide[name][0] <= low and high <= wide[name][1]
        assert low <= points[name][0] <= high


def test_coverage_is_near_the_nominal_level() -> None:
    """Of 200 samples of 60 images from a known law, about 95 % of the intervals hold the truth."""
    rng = np.random.default_rng(2024)
    rate, quality = 0.7, 0.8
    truth = 100 * quality * rate / (rate + 0.5 * (1 - rate))
    hits = 0
    for trial in range(200):
        tp = rng.binomial(1, rate, (60, 1))
        counts = PanopticCounts(tp, np.zeros_like(tp), 1 - tp, tp * quality)
        table = ImageStatistics(tuple(range(60)), (True,), (True,), panoptic=counts)
        low, high = bootstrap_intervals(table, bootstrap=Bootstrap(300, trial, 0.95))["pq"]
        hits += low <= truth <= high
    assert 180 <= hits <= 199


@pytest.mark.parametrize(
    ("values", "estimate", "expected"),
    [
        (np.arange(101.0), 50.0, (5.0, 95.0)),
        (np.arange(101.0), 47.0, (2.0, 92.0)),
        (np.array([1.0, np.nan, 1.0]), 1.0, (1.0, 1.0)),
    ],
)
def test_centred_interval(
    values: np.ndarray, estimate: float, expected: tuple[float, float]
) -> None:
    found = centred_interval(values, estimate=estimate, confidence=0.9)
    assert found == pytest.approx(expected)


def test_an_undefined_metric_has_no_interval() -> None:
    found = centred_interval(np.array([np.nan]), estimate=np.nan, confidence=0.9)
    assert np.isnan(found).all()


def test_seeds_need_the_same_images() -> None:
    with pytest.raises(InputError, match=r"\(12 and 11\)"):
        resample(statistics(0), statistics(0, images=11), bootstrap=Bootstrap(5, 0, 0.95))


def test_saved_statistics_come_back(tmp_path: Path) -> None:
    table = statistics(5)
    table.save(tmp_path)
    again = ImageStatistics.load(tmp_path, is_thing=THINGS, seen=SEEN)
    assert again.image_ids == table.image_ids
    first = table.resampled(Bootstrap(20, 1, 0.95))
    second = again.resampled(Bootstrap(20, 1, 0.95))
    assert first.keys() == second.keys()
    for name in first:
        assert np.array_equal(first[name], second[name], equal_nan=True), name


def test_statistics_without_some_metrics_come_back(tmp_path: Path) -> None:
    full = statistics(5)
    only = ImageStatistics(full.image_ids, THINGS, SEEN, semantic=full.semantic)
    full.save(tmp_path)
    only.save(tmp_path)
    again = ImageStatistics.load(tmp_path, is_thing=THINGS, seen=SEEN)
    assert again.panoptic is None and again.instances is None
    assert set(again.metrics()) == {"miou", "miou_union"}
    assert not (tmp_path / "instance_matches.parquet").exists()
    with pytest.raises(InputError, match="no such file"):
        ImageStatistics.load(tmp_path / "nowhere", is_thing=THINGS, seen=SEEN)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        *(("per_image.parquet", c) for c in ("image_id", "class", "fn", "iou_sum", "predicted")),
        *(("instance_matches.parquet", c) for c in ("image_id", "score", "matched")),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, file: str, column: str) -> None:
    statistics(5).save(tmp_path)
    pd.read_parquet(tmp_path / file).drop(columns=column).to_parquet(tmp_path / file)
    with pytest.raises(InputError, match=rf"{file}: lacks the columns \['{column}'\]"):
        ImageStatistics.load(tmp_path, is_thing=THINGS, seen=SEEN)


def test_subsets_and_undefined_metrics() -> None:
    subsets = class_subsets(THINGS, SEEN)
    assert subsets["pq_things"] == [0, 2] and subsets["pq_stuff"] == [1, 3]
    assert subsets["pq_seen"] == [0, 1] and subsets["pq_unseen"] == [2, 3]
    full = statistics(5)
    everything = ImageStatistics(full.image_ids, THINGS, (True,) * 4, panoptic=full.panoptic)
    assert np.isnan(everything.metrics()["pq_unseen"]).all()
    assert everything.metrics()["pq"][0] == pytest.approx(everything.metrics()["pq_seen"][0])


def test_miou_counts_classes_as_the_evaluator_does() -> None:
    """A class that is only predicted counts for ``miou_union``; a resample may drop either side."""
    evaluator = SemanticEvaluator(4)
    evaluator.update(0, np.array([[0, 0, 1]]), np.array([[0, 1, 1]]))
    evaluator.update(1, np.array([[3, 3, 1]]), np.array([[1, 1, 1]]))
    classes = (True,) * 4
    table = ImageStatistics((0, 1), classes, classes, semantic=evaluator.counts())
    metrics = table.metrics(np.array([[1.0, 1.0], [2.0, 0.0]]))
    # Class 0: 1 of 2; class 1: 2 of 5; class 3: 0 of 2, not in the ground truth.
    assert metrics["miou"] == pytest.approx([45.0, 50.0])
    assert metrics["miou_union"] == pytest.approx([30.0, 50.0])
    assert metrics["miou"][0] == pytest.approx(100 * evaluator.result().miou)
    assert metrics["miou_union"][0] == pytest.approx(100 * evaluator.result().miou_union)
