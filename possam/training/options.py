"""Choices of training: loss weights and the recipe."""

from typing import Annotated

from pydantic import Field, model_validator

from possam.datasets.options import AugmentationOptions
from possam.model.options import Precision
from possam.runtime.options import Count, Options, Positive, Rate, Unit, Weight

SAVE, SAVE_AND_END = 1, 2
"""What may be asked of a training between two steps: a checkpoint, and to end after it."""


class LossOptions(Options):
    """Loss weights and point sampling (Mask2Former's, with the paper's IoU term)."""

    class_weight: Weight
    bce_weight: Weight
    dice_weight: Weight
    iou_weight: Weight
    void_weight: Weight
    points: Positive
    oversample: Annotated[float, Field(ge=1.0)]
    importance: Unit


class TrainingOptions(Options):
    """The recipe. ``batch_size`` is the effective one, over all processes and forward passes.

    A step's batch is split into micro-batches of ``micro_batch`` images, one forward pass each,
    shared among processes: the result depends on the recipe, not on the number of GPUs.
    ``activation_checkpointing`` saves memory and costs time.
    """

    iterations: Positive
    batch_size: Positive
    micro_batch: Positive
    learning_rate: Rate
    weight_decay: Weight
    warmup: Count
    milestones: tuple[Positive, ...]
    gamma: Rate
    clip_norm: Rate
    precision: Precision
    activation_checkpointing: bool
    feature_cache: bool
    augmentation: AugmentationOptions
    checkpoint_every: Positive
    log_every: Positive
    workers: Count

    @model_validator(mode="after")
    def _micro_batches(self) -> "TrainingOptions":
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _cache(self) -> "TrainingOptions":
        if self.feature_cache and self.augmentation.policy == "lsj":
            raise ValueError(
                "feature_cache: true holds features of whole, unscaled images; use "
                "augmentation.policy 'flip' or 'none' instead of 'lsj'"
            )
        return self
