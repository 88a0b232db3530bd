"""One variant of several evaluations that differ by the training's seed: mean, spread, interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from possam.evaluation.options import Bootstrap
from possam.evaluation.statistics import (
    ImageStatistics,
    bootstrap_intervals,
    defined_intervals,
    frames_per_second,
)
from possam.evaluation.summary import RESULT, SECONDS
from possam.runtime.errors import InputError
from possam.runtime.files import read_json


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


def average_seeds(folders: Sequence[Path], variant: str, *, bootstrap: Bootstrap) -> SeedAverage:
    """Average ``variant`` over the evaluations in ``folders`` (at least two, one per seed).

    Raises:
        InputError: a file is missing, or the evaluations are not of the same images.
    """
    results = [_result(folder, variant) for folder in folders]
    try:
        if SECONDS in results[0]["protocol"]:
            intervals = _timed_intervals(results, bootstrap=bootstrap)
        else:
            intervals = bootstrap_intervals(*load_seeds(folders, variant), bootstrap=bootstrap)
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


def _timed_intervals(
    results: Sequence[Mapping[str, Any]], *, bootstrap: Bootstrap
) -> dict[str, tuple[float, float]]:
    """Of variants that were timed: the rate's by a bootstrap; what is counted has no spread."""
    seconds = [np.array(result["protocol"][SECONDS]) for result in results]
    _, interval = frames_per_second(*seconds, bootstrap=bootstrap)
    counted = {name: value for name, value in results[0]["metrics"].items() if name != "fps"}
    return {"fps": interval, **{name: (value, value) for name, value in counted.items()}}


def load_seeds(folders: Sequence[Path], variant: str, *, ap: bool = True) -> list[ImageStatistics]:
    """Per-image statistics of ``variant`` in each evaluation folder (one per seed).

    Without ``ap`` they lack the instances, which take most of the time of a resample.
    """
    tables = []
    for folder in folders:
        classes = _result(folder, variant)["per_class"]
        flags = {key: [row[key] for row in classes] for key in ("thing", "seen")}
        found = ImageStatistics.load(folder / variant, is_thing=flags["thing"], seen=flags["seen"])
        tables.append(found if ap else replace(found, instances=None))
    return tables


def _result(folder: Path, variant: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / RESULT)["variants"][variant]
    return found
