"""Training runs (``params/runs.yaml``)."""

from typing import Annotated

from pydantic import AfterValidator, model_validator

from possam.datasets.options import DatasetName, can_train
from possam.model.options import CLIP, ModelOptions
from possam.runtime.options import Count, Options
from possam.training.options import LossOptions, TrainingOptions


class RunDefinition(Options):
    """One entry of ``params/runs.yaml`` over the scale's defaults; seeds are the scale's.

    ``sam``: the SAM's size; ``null`` for ``backbone: clip``, which has none.
    """

    sam: str | None
    train: Annotated[DatasetName, AfterValidator(can_train)]
    model: ModelOptions
    loss: LossOptions
    training: TrainingOptions
    templates: tuple[str, ...]
    start_from: str | None = None
    """Asset of the Mask2Former checkpoint that the decoders start from; ``None``: random."""

    @model_validator(mode="after")
    def _sam_is_used(self) -> "RunDefinition":
        if (self.sam is None) != (self.model.backbone == "clip"):
            raise ValueError(
                f"sam: {self.sam or 'null'} does not go with model.backbone: "
                f"{self.model.backbone}; sam names a size, clip needs sam: null"
            )
        return self

    @property
    def towers(self) -> tuple[str, ...]:
        """Towers whose features training reads, CLIP last."""
        return (CLIP,) if self.sam is None else (self.sam, CLIP)


class RunParams(RunDefinition):
    """One resolved training: what the trained weights depend on, and nothing else."""

    seed: Count
