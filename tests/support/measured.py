"""A clock that tests set, and a measurement as it lies on disk."""

from typing import Any


class Clock:
    """Time that passes only when a test adds to ``now``."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def measurement_of(name: str, median: float, when: str) -> dict[str, Any]:
    side = {"median_s": median, "peak_memory_mib": 10.0}
    return {
        "when": when,
        "git": {"commit": "c" * 40, "dirty": False},
        "threads": 2,
        "hardware": {"cpu": "A CPU", "gpus": []},
        "packages": {"torch": "2.0"},
        "python": "3.11.0",
        "cases": [
            {
                "name": name,
                "reference": "other 1.0",
                "unit": "image",
                "items": 1,
                "ratio": {"median": 2.5, "low": 2.0, "high": 3.0},
                "target": 2.0,
                "target_seconds": None,
                "memory_share": 0.5,
                "target_memory": 0.6,
                "error": 1e-6,
                "error_is": "relative",
                "ours": side,
                "theirs": {**side, "median_s": 2.5 * median},
                "note": "",
            }
        ],
    }
