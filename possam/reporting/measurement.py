"""What a table cell shows: one inference variant of an evaluation, over the training's seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import Origin
from possam.runtime.files import read_json


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Metrics in percent, with the evaluations that they are from.

    Attributes:
        variant: the inference variant.
        evaluations: contents of ``evaluation.json``, one per seed.
        metrics: the value, or the mean over several seeds; None where it is undefined.
        std: the standard deviation over the seeds (``ddof`` 1); empty with one seed.
        intervals: of the value, low and high, by a bootstrap over images.
    """

    variant: str
    evaluations: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float | None]
    std: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float] | None]

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], variant: str) -> "Measurement":
        """The measurement of a single evaluation."""
        found = evaluation["variants"][variant]
        return cls(
            variant=variant,
            evaluations=(evaluation,),
            metrics=found["metrics"],
            std={},
            intervals=found["intervals"],
        )

    def get(self, metric: str) -> dict[str, float | None] | None:
        """``value``, ``low``, ``high``, ``std`` (None with one seed); None if undefined."""
        value, bounds = self.metrics.get(metric), self.intervals.get(metric)
        if value is None or bounds is None or not math.isfinite(value):
            return None
        low, high = bounds
        return {"value": value, "low": low, "high": high, "std": self.std.get(metric)}

    def parts(self) -> list[Mapping[str, Any]]:
        """The variant's part of each evaluation: metrics, check, protocol."""
        return [evaluation["variants"][self.variant] for evaluation in self.evaluations]


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """How the rows of a table compare with each other.

    Attributes:
        differences: row -> column key -> ``value``, ``low``, ``high``: the row minus the table's
            reference row in percentage points, paired over images, with its interval.
        agreement: column key -> ``tau``, ``low``, ``high``, ``rows``: Kendall's tau of the
            published order of the reproduced rows and ours.
    """

    differences: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def measure(project: Project, origin: Origin) -> Measurement | None:
    """What was measured at ``origin``; None if an evaluation or the variant is missing."""
    from possam.evaluation.comparison import average_seeds

    layout, variant = Layout(project), origin.variant
    folders = [layout.evaluation(*key) for key in origin.evaluations(project.scale.seeds)]
    files = [folder / "evaluation.json" for folder in folders]
    if not all(file.is_file() for file in files):
        return None
    evaluations = tuple(read_json(file) for file in files)
    if any(variant not in evaluation["variants"] for evaluation in evaluations):
        return None
    if len(evaluations) == 1:
        return Measurement.of(evaluations[0], variant)
    average = average_seeds(folders, variant, bootstrap=project.scale.evaluation.bootstrap)
    return Measurement(
        variant=variant,
        evaluations=evaluations,
        metrics=average.mean,
        std=average.std,
        intervals=average.intervals,
    )
