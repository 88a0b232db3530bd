"""Several evaluations: averaged over the seeds of a training, and compared.

Rows of one table are compared on the same images, with each other and with the published order.

Tables of two checkouts are compared across trainings. Another version of the code trains other
weights, even if only rounding has changed, and chance in training changes PQ by a point or more.
A bootstrap over images does not see that, since it holds the weights fixed. The uncertainty of such
a difference therefore has two parts, whose variances are added: other test images (bootstrap,
paired by image), and other seeds (Student's t, paired by seed).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, norm, t

from possam.evaluation.options import Bootstrap
from possam.evaluation.statistics import (
    ImageStatistics,
    Resampled,
    bootstrap_intervals,
    centred_interval,
    defined_intervals,
    frames_per_second,
    resample,
)
from possam.evaluation.summary import RESULT, SECONDS
from possam.runtime.errors import InputError
from possam.runtime.files import read_json


@dataclass(frozen=True, kw_only=True)
class SeedAverage:
    """Metrics over the seeds, in percent; None where a metric is undefined for a seed.

    ``std`` is the standard deviation over seeds (``ddof`` 1); ``intervals`` are those of the mean,
    by a bootstrap over images with the same resamples for all seeds.
    """

    mean: dict[str, float | None]
    std: dict[str, float | None]
    intervals: dict[str, list[float] | None]


def average_seeds(folders: Sequence[Path], variant: str, *, bootstrap: Bootstrap) -> SeedAverage:
    """Average ``variant`` over the evaluations in ``folders`` (at least two, one per seed).

    Raises:
        InputError: a file is missing, or the evaluations are not of the same images.
    """
    results = [_result(folder, variant) for folder in folders]
    try:
        if SECONDS in results[0]["protocol"]:
            # Only the rate has a spread, from a bootstrap; counts of parameters have none.
            seconds = [np.array(result["protocol"][SECONDS]) for result in results]
            intervals = {name: (n, n) for name, n in results[0]["metrics"].items()}
            _, intervals["fps"] = frames_per_second(*seconds, bootstrap=bootstrap)
        else:
            intervals = bootstrap_intervals(*load_seeds(folders, variant), bootstrap=bootstrap)
    except InputError as error:
        raise InputError(f"{folders[0].parent}: {error}") from error
    mean: dict[str, float | None] = dict.fromkeys(results[0]["metrics"])
    std = mean.copy()
    for name in mean:
        values = [result["metrics"].get(name) for result in results]
        if None not in values:
            mean[name], std[name] = float(np.mean(values)), float(np.std(values, ddof=1))
    return SeedAverage(mean=mean, std=std, intervals=defined_intervals(intervals))


def load_seeds(folders: Sequence[Path], variant: str, *, ap: bool = True) -> list[ImageStatistics]:
    """Per-image statistics of ``variant`` in each evaluation folder (one per seed).

    Without ``ap`` the instances are left out, which take most of the time of a resample.
    """
    tables = []
    for folder in folders:
        classes = _result(folder, variant)["per_class"]
        things, seen = ([row[key] for row in classes] for key in ("thing", "seen"))
        found = ImageStatistics.load(folder / variant, is_thing=things, seen=seen)
        tables.append(found if ap else replace(found, instances=None))
    return tables


def _result(folder: Path, variant: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / RESULT)["variants"][variant]
    return found


@dataclass(frozen=True)
class Difference:
    """A result minus its reference, in percentage points, with the interval of the difference."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two orders of ``rows`` rows (1: equal, -1: reversed), and its interval."""

    tau: float
    low: float
    high: float
    rows: int


def paired_differences(
    row: Resampled, reference: Resampled, *, confidence: float
) -> dict[str, Difference]:
    """``row - reference`` for each metric of both, which must have the same resampled images.

    In the order of ``row``'s metrics: a set's order changes with each process.
    """
    result = {}
    for name in (name for name in row.samples if name in reference.samples):
        value = row.points[name] - reference.points[name]
        spread = row.samples[name] - reference.samples[name]
        bounds = centred_interval(spread, estimate=value, confidence=confidence)
        result[name] = Difference(value, *bounds)
    return result


def rank_agreement(
    published: Sequence[float], rows: Sequence[Resampled], metric: str, *, confidence: float
) -> Agreement | None:
    """Whether ``metric`` orders the rows as the published values do.

    The interval holds the middle ``confidence`` of the coefficients of all resamples. It is not
    shifted: with a few rows the coefficients take only a few values.

    Returns:
        The agreement, or None for fewer than three rows or where all values are equal.

    Raises:
        InputError: the numbers of published values and rows differ.
    """
    if len(published) != len(rows):
        raise InputError(f"rank agreement: {len(published)} published values, {len(rows)} rows")
    if len(rows) < 3:
        return None
    tau = _tau(published, [row.points[metric] for row in rows])
    drawn = np.array([row.samples[metric] for row in rows])
    taus = np.array([_tau(published, draw) for draw in drawn.T])
    taus = taus[~np.isnan(taus)]
    if np.isnan(tau) or not taus.size:
        return None
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(taus, [tail, 1.0 - tail], method="closest_observation")
    return Agreement(tau, float(low), float(high), len(rows))


def _tau(first: Sequence[float], second: Sequence[float] | np.ndarray) -> float:
    return float(kendalltau(first, second).statistic)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one run on one benchmark in two checkouts, in percent.

    Attributes:
        run: name of the run; its results (other benchmarks or variants) share their trainings.
        benchmark: name of the benchmark; results on it share their images.
        before, after: means over the S seeds.
        by_seed: ``after - before`` of each seed, (S,).
        resampled: the mean over the seeds of ``after - before`` on B resamples of the images, (B,).
    """

    run: str
    benchmark: str
    before: float
    after: float
    by_seed: NDArray[np.float64]
    resampled: NDArray[np.float64]


def compare_trainings(
    before: Mapping[int, ImageStatistics],
    after: Mapping[int, ImageStatistics],
    *,
    run: str,
    benchmark: str,
    bootstrap: Bootstrap,
) -> dict[str, Change]:
    """The change of each metric that both sides have; ``before``, ``after``: by training seed.

    Raises:
        InputError: the seeds or the images differ.
    """
    if before.keys() != after.keys():
        raise InputError(f"seeds {sorted(before)} before, {sorted(after)} after: train the same")
    pairs = [(before[number], after[number]) for number in sorted(before)]
    if any(first.image_ids != second.image_ids for first, second in pairs):
        raise InputError("evaluations before and after have different images")
    points = [(first.metrics(), second.metrics()) for first, second in pairs]
    old, new = (resample(*side, bootstrap=bootstrap) for side in zip(*pairs, strict=True))
    return {
        name: Change(
            run=run,
            benchmark=benchmark,
            before=old.points[name],
            after=new.points[name],
            by_seed=np.array([float(last[name][0] - first[name][0]) for first, last in points]),
            resampled=new.samples[name] - old.samples[name],
        )
        for name in sorted(old.points.keys() & new.points.keys())
        if not np.isnan([old.points[name], new.points[name]]).any()
    }


def mean_change(results: Sequence[Change], *, confidence: float) -> Difference:
    """The mean change over one or more ``results``, with its interval.

    Results on one benchmark depend on the same images, results of one run on the same trainings;
    different benchmarks and different runs are independent. The seeds' degrees of freedom are
    those of Welch and Satterthwaite. With a single seed the interval covers only the images.
    """
    count = len(results)
    value = float(np.mean([each.by_seed.mean() for each in results]))
    tail = 0.5 + confidence / 2.0
    by_benchmark = _grouped((each.benchmark, each.resampled) for each in results)
    images = sum(float(np.nanvar(np.sum(group, axis=0), ddof=1)) for group in by_benchmark)
    half = float(norm.ppf(tail)) ** 2 * images / count**2
    if has_seeds(results):
        by_run = _grouped((each.run, each.by_seed) for each in results)
        trainings = [np.sum(group, axis=0) for group in by_run]
        parts = np.array([each.var(ddof=1) / len(each) for each in trainings])
        freedom = np.array([len(each) - 1.0 for each in trainings])
        if (total := float(parts.sum())) > 0.0:
            degrees = total**2 / np.sum(parts**2 / freedom)
            half += float(t.ppf(tail, degrees)) ** 2 * total / count**2
    half = half**0.5
    return Difference(value, value - half, value + half)


def _grouped(
    named: Iterable[tuple[str, NDArray[np.float64]]],
) -> Iterable[list[NDArray[np.float64]]]:
    """The arrays of each name."""
    groups = defaultdict[str, list[NDArray[np.float64]]](list)
    for name, values in named:
        groups[name].append(values)
    return groups.values()


def has_seeds(results: Sequence[Change]) -> bool:
    """Whether every run has at least two seeds, so that the spread of trainings is known."""
    return all(len(each.by_seed) > 1 for each in results)
