"""Systems of ``params/external.yaml``: predictions that were made elsewhere and are scored here."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal

from pydantic import Field

from possam.datasets.catalogue import trainable
from possam.evaluation.metrics import EFFICIENCY
from possam.params.reading import choose
from possam.runtime.errors import InputError
from possam.runtime.options import Options

_JSON = ".json"


class ExternalParams(Options):
    """One system and where its predictions lie.

    Attributes:
        scale: the scale whose test sets were predicted; at the others its cells are not shown.
        trained_on: the data set whose classes count as seen.
        category_ids: numbering of the predicted classes: the converted data set's indices, or the
            ids of the data set's publisher.
        predictions: by benchmark, a JSON in COCO panoptic format or a folder of label PNGs.
        segmentations: by benchmark, the folder of the JSON's PNGs where it does not lie beside it
            under its name.
    """

    scale: str
    trained_on: str
    category_ids: Literal["contiguous", "upstream"] = "contiguous"
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


def check_external(
    entries: Mapping[str, ExternalParams],
    *,
    source: str,
    runs: Collection[str],
    scales: Collection[str],
    measured: Mapping[str, Collection[str]],
) -> None:
    """Check every name in ``entries``.

    Args:
        measured: what each benchmark measures (keys of ``METRICS_OF``).

    Raises:
        InputError: something unknown, the name of a run, or a benchmark that needs a model.
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
