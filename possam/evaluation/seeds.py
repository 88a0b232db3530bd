"""One variant of several evaluations that differ by the training's seed: mean, spread, interval."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from possam.errors import InputError
from possam.evaluation.statistics import (
    ImageStatistics,
    bootstrap_intervals,
    defined_intervals,
)
from possam.evaluation.summary import RESULT
from possam.files import read_json


@dataclass(frozen=True, kw_only=True)
class SeedAverage:
    """Over the seeds, in percent; None where a metric is undefined for one of them.

    Attributes:
        mean, std: of each metric; the standard deviation is that of the seeds (``ddof`` 1).
        intervals: of the mean, by a bootstrap over images: all seeds on the same resamples.
    """

    mean: dict[str, float | None]
    std: dict[str, float | None]
    intervals: dict[str, list[float] | None]


def average_seeds(
    folders: Sequence[Path], variant: str, *, samples: int, seed: int, confidence: float
) -> SeedAverage:
    """Average ``variant`` over the evaluations in ``folders`` (at least two, one a seed).

    Args:
        samples, seed, confidence: of the bootstrap.

    Raises:
        InputError: a file is missing, or the evaluations are not of the same images.
    """
    results = [read_json(folder / RESULT)["variants"][variant] for folder in folders]
    tables = []
    for folder, result in zip(folders, results, strict=True):
        flags = {key: [row[key] for row in result["per_class"]] for key in ("thing", "seen")}
        tables.append(
            ImageStatistics.load(folder / variant, is_thing=flags["thing"], seen=flags["seen"])
        )
    try:
        intervals = bootstrap_intervals(*tables, samples=samples, seed=seed, confidence=confidence)
    except InputError as error:
        raise InputError(f"{folders[0].parent}: {error}") from error
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for name in results[0]["metrics"]:
        values = [result["metrics"].get(name) for result in results]
        known = None not in values
        mean[name] = float(np.mean(values)) if known else None
        std[name] = float(np.std(values, ddof=1)) if known else None
    return SeedAverage(mean=mean, std=std, intervals=defined_intervals(intervals))
