"""Test sets, what is measured on them, and systems that are not trained here.

Files: ``params/benchmarks.yaml``, ``params/external.yaml``, ``params/training_free.yaml``.
"""

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import Field, model_validator

from possam.datasets.catalogue import Split, declaration, trainable
from possam.datasets.options import DatasetName
from possam.evaluation.metrics import EFFICIENCY
from possam.evaluation.options import Measured, Numbering
from possam.params.reading import choose
from possam.runtime.errors import InputError
from possam.runtime.options import Options, Positive

_JSON = ".json"


class BenchmarkParams(Options):
    """One test set and what is measured on it; ``images``: number of images that are timed."""

    dataset: DatasetName
    split: Split
    metrics: tuple[Measured, ...]
    images: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> "BenchmarkParams":
        source = declaration(self.dataset)
        assert source is not None, "DatasetName has checked it"
        for key, values, valid in (
            ("split", (self.split,), source.splits),
            ("metrics", self.metrics, (*source.metrics, EFFICIENCY)),
        ):
            if strange := [value for value in values if value not in valid]:
                raise ValueError(
                    f"{key}: data set {self.dataset!r} has no {strange[0]!r}; "
                    f"valid choices: {', '.join(valid)}"
                )
        timed = EFFICIENCY in self.metrics
        if timed and len(self.metrics) > 1:
            raise ValueError("metrics: efficiency is measured alone, in a benchmark of its own")
        if timed != (self.images is not None):
            raise ValueError("images: the number of images to time goes with metrics [efficiency]")
        return self


class ExternalParams(Options):
    """One system and where its predictions lie.

    Attributes:
        scale: the scale whose test sets were predicted; other scales do not show its cells.
        trained_on: the data set whose classes count as seen.
        predictions: by benchmark, a JSON in COCO panoptic format or a folder of label PNGs.
        segmentations: by benchmark, the folder of the JSON's PNGs where it does not lie beside it
            under its name.
    """

    scale: str
    trained_on: str
    category_ids: Numbering = "contiguous"
    predictions: Annotated[dict[str, str], Field(min_length=1)]
    segmentations: dict[str, str] = Field(default_factory=dict)

    def is_panoptic(self, benchmark: str) -> bool:
        """Whether the predictions are in COCO panoptic format; else they are label maps."""
        return self.predictions[benchmark].endswith(_JSON)

    def paths(self, benchmark: str) -> dict[str, str]:
        """Paths of a benchmark's predictions, by the field that names them."""
        path = self.predictions[benchmark]
        if not self.is_panoptic(benchmark):
            return {"predictions": path}
        beside = path.removesuffix(_JSON)
        return {"predictions": path, "segmentations": self.segmentations.get(benchmark, beside)}


class TrainingFreeParams(Options):
    """One system that trains nothing: automatic masks of a SAM, named by CLIP.

    ``sam``: the SAM's size; ``seen``: the data set whose classes count as seen, so that its columns
    compare with those of runs that are trained on it.
    """

    sam: str
    seen: str


def check_external(
    entries: Mapping[str, ExternalParams],
    source: str,
    runs: Collection[str],
    scales: Collection[str],
    measured: Mapping[str, Collection[str]],
) -> None:
    """Check every name in ``entries``; ``measured``: what each benchmark measures.

    Raises:
        InputError: an unknown name, the name of a run, or a benchmark that needs a model.
    """
    for name, entry in entries.items():
        if name in runs:
            raise InputError(
                f"{source}: {name}: a run of runs.yaml has this name as well; rename one of them"
            )
        choose("scale", entry.scale, scales, source, f"{name}.scale")
        choose("training set", entry.trained_on, trainable(), source, f"{name}.trained_on")
        scored = [test for test, kinds in measured.items() if EFFICIENCY not in kinds]
        for benchmark in entry.predictions:
            key = f"{name}.predictions"
            choose("benchmark", benchmark, scored, source, key)
            if not entry.is_panoptic(benchmark) and "semantic" not in measured[benchmark]:
                raise InputError(
                    f"{source}: {key}.{benchmark}: label PNGs only give mIoU, which this "
                    "benchmark does not measure; name a JSON file in COCO panoptic format"
                )
        panoptic = [test for test in entry.predictions if entry.is_panoptic(test)]
        for benchmark in entry.segmentations:
            choose("JSON predictions of", benchmark, panoptic, source, f"{name}.segmentations")
