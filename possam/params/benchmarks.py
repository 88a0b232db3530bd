"""Test sets and what is measured on them (``params/benchmarks.yaml``)."""

from pydantic import model_validator

from possam.datasets.catalogue import Split, datasets
from possam.datasets.options import DatasetName
from possam.evaluation.metrics import EFFICIENCY
from possam.evaluation.options import Measured
from possam.runtime.options import Options, Positive


class BenchmarkParams(Options):
    """One test set and what is measured on it; ``images``: how many efficiency is timed on."""

    dataset: DatasetName
    split: Split
    metrics: tuple[Measured, ...]
    images: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> "BenchmarkParams":
        source = datasets()[self.dataset]
        for key, values, valid in (
            ("split", (self.split,), source.splits),
            ("metrics", self.metrics, (*source.metrics, EFFICIENCY)),
        ):
            if strange := [value for value in values if value not in valid]:
                raise ValueError(
                    f"{key}: data set {self.dataset!r} has no {strange[0]!r}; "
                    f"valid choices: {', '.join(valid)}"
                )
        return self

    @model_validator(mode="after")
    def _timed_alone(self) -> "BenchmarkParams":
        timed = EFFICIENCY in self.metrics
        if timed and len(self.metrics) > 1:
            raise ValueError("metrics: efficiency is measured alone, in a benchmark of its own")
        if timed != (self.images is not None):
            raise ValueError("images: the number of images to time goes with metrics [efficiency]")
        return self
