"""One scale: assets, towers and the defaults of every run (``params/scales/*.yaml``)."""

from typing import Annotated

from pydantic import Field, model_validator

from possam.evaluation.options import EvaluationOptions
from possam.model.options import AutomaticMaskOptions, InferenceOptions, ModelOptions, Precision
from possam.runtime.options import Count, Options, Positive
from possam.synthetic.options import WorldOptions
from possam.training.options import LossOptions, TrainingOptions


class TowerParams(Options):
    """Frozen towers: SAM sizes and CLIP, as (architecture, asset)."""

    class Sam(Options):
        architecture: str
        asset: str

    class Clip(Options):
        config: str
        asset: str | None
        files: tuple[str, ...] = ()

    sam: dict[str, Sam]
    clip: Clip
    precision: Precision


class ScaleParams(Options):
    """One scale: assets, towers and the defaults of every run.

    Every run is trained once a seed; tables show the mean over the seeds.
    """

    title: str
    synthetic: bool
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    threads: Positive
    world: WorldOptions | None
    assets: dict[str, str]
    towers: TowerParams
    templates: tuple[str, ...]
    model: ModelOptions
    loss: LossOptions
    training: TrainingOptions
    inference: InferenceOptions
    evaluation: EvaluationOptions
    automatic_masks: AutomaticMaskOptions

    @model_validator(mode="after")
    def _seeds(self) -> "ScaleParams":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: a seed is written twice")
        return self
