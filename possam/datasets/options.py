"""Names of data sets as parameters, and choices of augmentation."""

from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from possam.datasets.catalogue import DATASETS, TRAINABLE
from possam.runtime.options import Options, Positive, Rate


def _known(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"unknown data set; valid choices: {', '.join(DATASETS)}")
    return name


def trainable(name: str) -> str:
    if name not in TRAINABLE:
        raise ValueError(
            f"this data set has no training split; valid choices: {', '.join(TRAINABLE)}"
        )
    return name


DatasetName = Annotated[str, AfterValidator(_known)]


class AugmentationOptions(Options):
    """``lsj``: scale jitter, crop and flip; ``flip``: mirror only; ``none``.

    ``size``: of the crop in pixels; ``min_scale``, ``max_scale``: range of the scale factor.
    """

    policy: Literal["lsj", "flip", "none"]
    size: Positive
    min_scale: Rate
    max_scale: Rate

    @model_validator(mode="after")
    def _range(self) -> "AugmentationOptions":
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} is above max_scale {self.max_scale}")
        return self
