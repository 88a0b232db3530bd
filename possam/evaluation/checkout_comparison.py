"""A table compared with that of another checkout, whose code made the same trainings again.

Another version of the code trains other weights, even if only rounding has changed, and chance in
training is worth a point of PQ or more. A bootstrap over images does not see that, since it holds
the weights fixed. The uncertainty of a difference therefore has two parts, whose variances are
added: other test images (bootstrap, paired by image), and other seeds (Student's t, paired by
seed).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from possam.evaluation.options import Bootstrap
from possam.evaluation.row_comparison import Difference
from possam.evaluation.statistics import ImageStatistics, resample
from possam.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one run on one benchmark in two checkouts, in percent.

    Attributes:
        run: its name; results of one run (other benchmarks or variants) share their trainings.
        benchmark: its name; results on one benchmark share their images.
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
    """The change of each metric that both checkouts have, of one run's evaluations.

    Args:
        before, after: by training seed.
        bootstrap: draws the same images for all evaluations.

    Raises:
        InputError: the seeds or the images differ.
    """
    if before.keys() != after.keys():
        raise InputError(f"seeds {sorted(before)} before, {sorted(after)} after: train the same")
    seeds = sorted(before)
    pairs = [(before[number], after[number]) for number in seeds]
    for first, second in pairs:
        if first.image_ids != second.image_ids:
            raise InputError("evaluations before and after have different images")
    points = [(first.metrics(), second.metrics()) for first, second in pairs]
    old = resample(*(first for first, _ in pairs), bootstrap=bootstrap)
    new = resample(*(second for _, second in pairs), bootstrap=bootstrap)
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
    """The mean change over ``results`` (one is enough), with its interval.

    Results on one benchmark depend on the same images, results of one run on the same trainings;
    different benchmarks and different runs are independent. The seeds' degrees of freedom are
    those of Welch and Satterthwaite. With a single seed the interval only covers the images.
    """
    count = len(results)
    value = float(np.mean([each.by_seed.mean() for each in results]))
    tail = 0.5 + confidence / 2.0
    images = sum(
        float(np.nanvar(np.sum(group, axis=0), ddof=1))
        for group in _grouped((each.benchmark, each.resampled) for each in results)
    )
    half = float(norm.ppf(tail)) ** 2 * images / count**2
    if has_seeds(results):
        trainings = [
            np.sum(group, axis=0)
            for group in _grouped((each.run, each.by_seed) for each in results)
        ]
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
    groups: dict[str, list[NDArray[np.float64]]] = {}
    for name, values in named:
        groups.setdefault(name, []).append(values)
    return groups.values()


def has_seeds(results: Sequence[Change]) -> bool:
    """Whether every run has at least two seeds, so that the spread of trainings is known."""
    return all(len(each.by_seed) > 1 for each in results)
