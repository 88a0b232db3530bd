"""What a table cell shows: one inference variant of an evaluation, over the training's seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Metrics in percent, with the evaluations that they are from.

    Attributes:
        variant: the inference variant.
        evaluations: contents of ``evaluation.json``, one a seed.
        metrics: the value, of several seeds their mean; None where it is undefined.
        std: the standard deviation over the seeds (``ddof`` 1); empty with one seed.
        intervals: bootstrap over images, low and high, of the value.
    """

    variant: str
    evaluations: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float | None]
    std: Mapping[str, float | None]
    intervals: Mapping[str, Sequence[float] | None]

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], variant: str) -> "Measurement":
        """The measurement that a single evaluation is."""
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
