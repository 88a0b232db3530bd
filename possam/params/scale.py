"""Scales (``params/scales/*.yaml``) and training runs (``params/runs.yaml``)."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from possam.datasets.options import DatasetName, can_train
from possam.evaluation.options import EvaluationOptions
from possam.model.options import (
    CLIP,
    AutomaticMaskOptions,
    InferenceOptions,
    MaskFilter,
    ModelOptions,
    Precision,
    ResolutionOptions,
)
from possam.runtime.options import Count, Options, Positive, Unit
from possam.synthetic.options import WorldOptions
from possam.training.options import LossOptions, TrainingOptions


class TowerParams(Options):
    """Frozen towers: SAM by size, and CLIP."""

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


class PredictParams(Options):
    """How pictures of a user are segmented, which no table depends on.

    ``resolution``: at which the towers see them; the others as of the inference, for words that are
    classified one by one, so that void is no class against all of them (docs/own-data.md).
    """

    resolution: ResolutionOptions
    mask_filter: MaskFilter
    object_threshold: Unit
    overlap_threshold: Unit


class ScaleParams(Options):
    """One scale: assets, towers and the defaults of every run.

    Every run is trained once per seed; tables show the mean over the seeds.
    ``data_of``: the scale whose assets and converted data sets are used; None: its own.
    ``test_resolutions``: by the names that runs give as their ``test_resolution``.
    """

    title: str
    data_of: str | None = None
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
    test_resolutions: dict[str, ResolutionOptions]
    evaluation: EvaluationOptions
    automatic_masks: AutomaticMaskOptions
    predict: PredictParams

    @model_validator(mode="after")
    def _seeds(self) -> "ScaleParams":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: a seed is written twice")
        return self


class RunDefinition(Options):
    """One entry of ``params/runs.yaml`` over the scale's defaults; seeds are the scale's.

    ``sam``: the SAM's size; ``null`` for ``backbone: clip``, which has no SAM.
    """

    sam: str | None
    train: Annotated[DatasetName, AfterValidator(can_train)]
    model: ModelOptions
    loss: LossOptions
    training: TrainingOptions
    templates: tuple[str, ...]
    start_from: str | None = None
    """What training starts from: an asset, a Mask2Former checkpoint for the decoders; or another
    run, for all of its trained weights of the same seed. None: random weights."""
    test_resolution: Annotated[str | None, Field(exclude=True)] = None
    """One of the scale's; None: ``inference.resolution``. Trained weights do not depend on it."""

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

    @property
    def reads(self) -> dict[str, Any]:
        """What decides which features a step reads; runs that agree in it can train together."""
        names = ("batch_size", "micro_batch", "augmentation", "feature_cache", "workers")
        recipe = {f"training.{name}": getattr(self.training, name) for name in names}
        padding = {"model.padding": self.model.padding}
        return {"sam": self.sam, "train": self.train, **recipe, **padding}


class RunParams(RunDefinition):
    """One resolved training: what the trained weights depend on, and nothing else."""

    seed: Count
