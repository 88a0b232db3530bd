"""What a run counts, and which fields of its metrics file depend on time."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TIME_FIELDS = ("time", "images_per_s", "memory_gib", "eta_s")
"""Fields that differ between two executions of the same run; all others are equal to the bit."""


@dataclass
class Window:
    """Sums of the logged values of the finite steps since the last metrics line."""

    count: int
    sums: list[float]


@dataclass
class Counters:
    """The state that the loop carries from step to step, beside weights and optimiser.

    Attributes:
        seconds: of training so far.
        skipped: steps that were not finite.
        consecutive: number of steps in a row, up to the last one, that were not finite.
        together: the most runs that shared a step's data; ``seconds`` count all their steps.
    """

    seconds: float
    skipped: int
    consecutive: int
    window: Window
    together: int = 1

    @staticmethod
    def zero(size: int) -> "Counters":
        """Counters before the first step; ``size``: number of logged values."""
        return Counters(0.0, 0, 0, Window(0, [0.0] * size))

    @staticmethod
    def restore(state: Mapping[str, Any]) -> "Counters":
        """Counters from what :meth:`state` returned."""
        return Counters(**{**state, "window": Window(**state["window"])})

    def state(self) -> dict[str, Any]:
        """All counters as JSON-able values."""
        return asdict(self)

    def add(self, finite: bool, values: Sequence[float]) -> None:
        """Count one step with its logged values."""
        if not finite:
            self.skipped += 1
            self.consecutive += 1
            return
        self.consecutive = 0
        self.window.count += 1
        self.window.sums = [old + new for old, new in zip(self.window.sums, values, strict=True)]

    def means(self) -> list[float | None]:
        """Means of the window (all None if no step was finite), which then starts over."""
        count, sums = self.window.count, self.window.sums
        self.window = Window(0, [0.0] * len(sums))
        return [total / count if count else None for total in sums]
