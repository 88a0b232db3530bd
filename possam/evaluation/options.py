"""Choices of evaluation: what is measured, under which condition, and with which bootstrap."""

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from possam.model.options import Compilation, Precision
from possam.runtime.options import Count, Options, Positive

Condition = Literal["trained", "untrained", "shuffled_names"]
"""What is evaluated: trained weights, or a control that must fail."""

Measured = Literal["panoptic", "instance", "semantic", "efficiency"]
"""What a benchmark measures; :data:`possam.evaluation.metrics.METRICS_OF` names its metrics."""

Numbering = Literal["contiguous", "upstream"]
"""Numbers of predicted classes: the converted data set's indices, or its publisher's ids."""


GROUND_TRUTH_MASKS, ORACLE_LABELS = "ground_truth_masks", "oracle_labels"
PROBES = {
    GROUND_TRUTH_MASKS: "the segments of the ground truth, each named by the model",
    ORACLE_LABELS: "the model's masks, each named by the segment of the ground truth that overlaps "
    "it best (IoU); masks that overlap none are void",
}
"""Probes of the error budget (:mod:`possam.evaluation.budget`): what they compute, by name. No
inference variant may have such a name, since their results stand beside those of the variants."""


class Bootstrap(NamedTuple):
    """A bootstrap over images: number of resamples, their seed, the level of intervals (0..1)."""

    samples: int
    seed: int
    confidence: float


class EvaluationOptions(Options):
    """Bootstrap settings and the optional cross-check against panopticapi.

    ``compile``: how the network runs (:func:`possam.model.ops.compilation.compiled`).
    ``precision``: of the decoders; the towers have their own.
    """

    bootstrap_samples: Positive
    bootstrap_seed: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    check_panopticapi: bool
    batch_size: Positive
    compile: Compilation
    precision: Precision

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap's three settings together."""
        return Bootstrap(self.bootstrap_samples, self.bootstrap_seed, self.confidence)
