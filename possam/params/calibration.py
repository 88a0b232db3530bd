"""What the mini world is calibrated to (``params/calibration.yaml``)."""

from pathlib import Path

from pydantic import Field, ValidationInfo, field_validator

from possam.params.reading import read_entries, validate
from possam.runtime.options import Options


class CalibrationTarget(Options):
    """The range of one figure, bounds included; ``what`` it is, and the ``source`` of the range."""

    low: float
    high: float
    what: str = Field(min_length=1)
    source: str = Field(min_length=1)

    @field_validator("high")
    @classmethod
    def _above_low(cls, high: float, info: ValidationInfo) -> float:
        if high <= info.data.get("low", high - 1):
            raise ValueError("it must be above low")
        return high

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the range."""
        return self.low <= value <= self.high


def calibration_targets(folder: Path = Path("params")) -> dict[str, CalibrationTarget]:
    """All targets by name; InputError if one is wrong."""
    path = folder / "calibration.yaml"
    return {
        name: validate(CalibrationTarget, entry, source=f"{path}: {name}")
        for name, entry in read_entries(path).items()
    }
