"""Checked parameters: names of data sets, and the augmentation of training images."""

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from possam.datasets.catalogue import OWN, datasets, declaration, trainable
from possam.runtime.options import Options, Positive, Rate


def _known(name: str) -> str:
    if declaration(name) is None:
        raise ValueError(f"unknown data set; valid choices: {', '.join([*datasets(), OWN])}")
    return name


def can_train(name: str) -> str:
    """``name`` if a run can train on this data set, else ValueError."""
    if name not in (choices := [*trainable(), OWN]):
        raise ValueError(
            f"this data set has no training split; valid choices: {', '.join(choices)}"
        )
    return name


DatasetName = Annotated[str, AfterValidator(_known)]


class AugmentationOptions(Options):
    """``policy``: ``lsj`` (scale jitter, crop and flip), ``flip`` (mirror only) or ``none``.

    ``size``: side of the crop in pixels; ``min_scale``, ``max_scale``: range of the scale factor.
    """

    policy: Literal["lsj", "flip", "none"]
    size: Positive
    min_scale: Rate
    max_scale: Rate

    @model_validator(mode="after")
    def _scales(self) -> "AugmentationOptions":
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self
