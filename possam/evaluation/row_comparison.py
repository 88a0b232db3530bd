"""Rows of one table, compared over the same images with each other and with the published order."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from possam.evaluation.statistics import Resampled, centred_interval
from possam.runtime.errors import InputError


@dataclass(frozen=True)
class Difference:
    """A result minus the one that it is compared with, in percentage points, with its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """Kendall's tau-b of two orders of the same rows: 1 the same, -1 reversed; its interval.

    Attributes:
        rows: how many rows were ordered.
    """

    tau: float
    low: float
    high: float
    rows: int


def paired_differences(
    row: Resampled, reference: Resampled, *, confidence: float
) -> dict[str, Difference]:
    """``row - reference`` for the metrics that both have, both on the same resampled images."""
    result = {}
    for name in row.samples.keys() & reference.samples.keys():
        value = row.points[name] - reference.points[name]
        spread = row.samples[name] - reference.samples[name]
        result[name] = Difference(
            value, *centred_interval(spread, estimate=value, confidence=confidence)
        )
    return result


def rank_agreement(
    published: Sequence[float], rows: Sequence[Resampled], metric: str, *, confidence: float
) -> Agreement | None:
    """Whether ``metric`` orders the rows as the published values do.

    The interval holds the middle ``confidence`` of the coefficients of all resamples. It is not
    shifted: with a few rows the coefficients take only a few values.

    Returns:
        None where there is no order: fewer than three rows, or all values equal.

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
