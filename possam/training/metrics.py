"""The metrics file of a run: one JSON object a line, the truth about how training went."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TIME_FIELDS = ("time", "images_per_s", "memory_gib", "eta_s")
"""Fields that differ between two executions of the same run; all others are equal bit for bit."""


class MetricsFile:
    """Appends lines; a reader that follows the file never sees half a line for long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line."""
        self._stream.write(json.dumps(values, allow_nan=False) + "\n")
        self._stream.flush()

    def sync(self) -> None:
        """Return when everything written is on the disk."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Window:
    """Means over the steps since the last logged one; its sums are part of a checkpoint."""

    def __init__(self, names: Sequence[str], state: Mapping[str, Any] | None = None) -> None:
        self.names = tuple(names)
        self.count = int(state["count"]) if state else 0
        self.sums = list(state["sums"]) if state else [0.0] * len(self.names)

    def add(self, values: Sequence[float]) -> None:
        """Add the values of one finite step."""
        self.count += 1
        self.sums = [old + new for old, new in zip(self.sums, values, strict=True)]

    def means(self) -> dict[str, float | None]:
        """Means by name (None where no step was finite), and start over."""
        values = [total / self.count if self.count else None for total in self.sums]
        self.count, self.sums = 0, [0.0] * len(self.names)
        return dict(zip(self.names, values, strict=True))

    def state(self) -> dict[str, Any]:
        """What ``__init__`` takes to go on."""
        return {"count": self.count, "sums": list(self.sums)}


def finite(values: Sequence[float]) -> bool:
    """Whether all of ``values`` are finite."""
    return all(math.isfinite(value) for value in values)


def last_line(path: Path) -> dict[str, Any] | None:
    """The last object of a metrics file, None if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(json.loads(lines[-1])) if lines else None
