"""Typed parameters: everything in ``params/``, checked at load.

A scale file (``params/scales/<scale>.yaml``) holds the defaults of every run and evaluation;
``params/runs.yaml`` writes each run, and ``params/variants.yaml`` each inference variant, as its
difference from them. Unknown keys, wrong types and dangling references are errors that name the
file, the key and the valid choices.
"""

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from possam.catalogue import DATASETS, ROLES, TRAINABLE
from possam.checked_yaml import P, Params, choose, merge, read_entries, read_yaml, validate
from possam.errors import InputError
from possam.external_params import ExternalParams, check_external
from possam.table_params import (
    DEFAULT_VARIANT,
    EFFICIENCY,
    Measured,
    TableParams,
    check_table,
)

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0.0)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
TrainedSplit = Literal["train", "val"]
CLIP = "clip"
"""Name of a feature tower beside the SAM sizes: the stages of CLIP, its dense map the last."""


def _known(name: str) -> str:
    if name not in DATASETS:
        raise ValueError(f"unknown data set; valid choices: {', '.join(DATASETS)}")
    return name


def _trainable(name: str) -> str:
    if name not in TRAINABLE:
        raise ValueError(
            f"this data set has no training split; valid choices: {', '.join(TRAINABLE)}"
        )
    return name


DatasetName = Annotated[str, AfterValidator(_known)]


class ModelParams(Params):
    """Widths and choices of the trainable part (paper, sections 3.3 and 3.4).

    ``backbone: clip`` makes masks from the stages of CLIP alone, as FC-CLIP does. ``two_way`` is
    SAM's decoder: it reads SAM's one map, without pyramid and pixel decoder.
    """

    backbone: Literal["sam", "clip"]
    hidden_dim: Positive
    queries: Positive
    heads: Positive
    pyramid: Literal["fpn", "resample", "stages"] | None
    pixel_encoder_layers: Count
    pixel_encoder_ffn: Positive
    deformable_points: Positive
    decoder: Literal["mask2former", "two_way"]
    decoder_layers: Positive
    decoder_ffn: Positive
    pooling: Literal["ldp", "cross_attention", "region", "clip"]
    pooling_dim: Positive
    pooling_heads: Positive
    pooling_interaction: Literal["mask", "image"]
    region_features: Literal["mask_features", "neck", "queries"]
    iou_head: bool

    @model_validator(mode="after")
    def _divisible(self) -> "ModelParams":
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of heads and of 4")
        if self.pooling_dim % self.pooling_heads:
            raise ValueError(f"pooling_dim {self.pooling_dim} must be a multiple of pooling_heads")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelParams":
        """Every choice is read: a part that is not there has no choices."""
        pyramids: tuple[str | None, ...] = ("fpn", "resample")
        if self.decoder == "two_way":
            if self.backbone != "sam":
                raise ValueError("decoder: two_way reads SAM's one map; set backbone: sam")
            if self.pixel_encoder_layers:
                raise ValueError(
                    "decoder: two_way has no pixel decoder; set pixel_encoder_layers: 0"
                )
            if self.hidden_dim % (2 * self.heads) or self.hidden_dim % 8:
                raise ValueError("decoder: two_way needs hidden_dim a multiple of 2 heads and of 8")
            pyramids = (None,)
        elif self.backbone == "clip":
            pyramids = ("stages",)
        if self.pyramid not in pyramids:
            valid = ", ".join("null" if name is None else name for name in pyramids)
            raise ValueError(
                f"pyramid {self.pyramid!r} does not go with backbone: {self.backbone} and decoder: "
                f"{self.decoder}; valid choices: {valid}"
            )
        if self.backbone == "clip" and self.region_features == "neck":
            raise ValueError(
                "region_features: neck is SAM's; backbone: clip has mask_features and queries"
            )
        return self


class LossParams(Params):
    """Loss weights and point sampling (Mask2Former's, with the paper's IoU term)."""

    class_weight: Weight
    bce_weight: Weight
    dice_weight: Weight
    iou_weight: Weight
    void_weight: Weight
    points: Positive
    oversample: Annotated[float, Field(ge=1.0)]
    importance: Unit


class AugmentationParams(Params):
    """``lsj``: scale jitter, crop and flip; ``flip``: mirror only; ``none``. ``size`` in pixels."""

    policy: Literal["lsj", "flip", "none"]
    size: Positive
    min_scale: Rate
    max_scale: Rate


class TrainingParams(Params):
    """The recipe. ``batch_size`` is the effective one, over all devices and accumulation steps.

    It is cut into slices of ``micro_batch`` images, one forward pass each, which any number of
    processes share: the recipe, and not how many GPUs there are, decides what is trained.
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
    precision: Literal["fp32", "bf16"]
    activation_checkpointing: bool
    feature_cache: bool
    augmentation: AugmentationParams
    checkpoint_every: Positive
    log_every: Positive
    workers: Count

    @model_validator(mode="after")
    def _slices(self) -> "TrainingParams":
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}"
            )
        return self

    @model_validator(mode="after")
    def _cache(self) -> "TrainingParams":
        if self.feature_cache and self.augmentation.policy == "lsj":
            raise ValueError(
                "feature_cache: true holds features of whole, unscaled images; it allows "
                "augmentation.policy 'flip' or 'none', not 'lsj'"
            )
        return self


class ResolutionParams(Params):
    """Test resolution in pixels: ``shortest_edge`` is ``size``, the longer at most ``max_size``."""

    policy: Literal["shortest_edge", "letterbox", "native"]
    size: Positive
    max_size: Positive


class InferenceParams(Params):
    """Ensembling (paper, section 3.5) and panoptic merging (Mask2Former, FC-CLIP)."""

    ensemble: Literal["mase", "geometric", "ldp", "clip"]
    alpha: Unit
    beta: Unit
    mase_confidence: Literal["class", "mask"]
    iou_weighting: bool
    object_threshold: Unit
    overlap_threshold: Unit
    instance_top_k: Positive
    resolution: ResolutionParams


class TowerParams(Params):
    """Frozen towers: SAM sizes and CLIP, as (architecture, asset)."""

    class Sam(Params):
        architecture: str
        asset: str

    class Clip(Params):
        config: str
        asset: str | None
        files: tuple[str, ...] = ()

    sam: dict[str, Sam]
    clip: Clip
    precision: Literal["fp32", "bf16"]


class WorldParams(Params):
    """Sizes of the procedural stand-in for the upstream data sets; ``null`` at paper scale."""

    seed: Count
    coco_train: Positive
    coco_val: Positive
    ade20k_train: Positive
    ade20k_val: Positive
    ade20k_full_val: Positive
    pascal_context_val: Positive


class EvaluationParams(Params):
    """Bootstrap settings and the optional cross-check against panopticapi.

    ``compile``: how the network runs (:func:`possam.model.compilation.compiled`).
    """

    bootstrap_samples: Positive
    bootstrap_seed: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    check_panopticapi: bool
    batch_size: Positive
    compile: Literal["none", "inductor", "cuda_graphs"]


class AutomaticMasksParams(Params):
    """SAM's automatic masks (figures): its point grid and thresholds on IoU, stability, overlap."""

    points_per_side: Positive
    iou_threshold: Unit
    stability_threshold: Unit
    nms_threshold: Unit


class ScaleParams(Params):
    """One scale: assets, towers and the defaults of every run.

    Every run is trained once a seed; tables show the mean over the seeds.
    """

    title: str
    synthetic: bool
    seeds: Annotated[tuple[Count, ...], Field(min_length=1)]
    threads: Positive
    world: WorldParams | None
    assets: dict[str, str]
    towers: TowerParams
    templates: tuple[str, ...]
    model: ModelParams
    loss: LossParams
    training: TrainingParams
    inference: InferenceParams
    evaluation: EvaluationParams
    automatic_masks: AutomaticMasksParams

    @model_validator(mode="after")
    def _seeds(self) -> "ScaleParams":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: a seed is written twice")
        return self


class RunDefinition(Params):
    """One entry of ``params/runs.yaml`` over the scale's defaults; seeds are the scale's.

    ``sam``: the SAM's size; ``null`` for ``backbone: clip``, which has none.
    """

    sam: str | None
    train: Annotated[DatasetName, AfterValidator(_trainable)]
    model: ModelParams
    loss: LossParams
    training: TrainingParams
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


class BenchmarkParams(Params):
    """One test set and what is measured on it; ``images``: how many efficiency is timed on."""

    dataset: DatasetName
    split: TrainedSplit
    metrics: tuple[Measured, ...]
    images: Positive | None = None

    @model_validator(mode="after")
    def _possible(self) -> "BenchmarkParams":
        source = DATASETS[self.dataset]
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


class AssetParams(Params):
    """One upstream file.

    ``urls`` (``http:``, ``https:``, ``file:``) are tried in order; an empty list means that the
    user puts the file in place. ``checksum`` is ``algorithm:hex``, ``manifest:<path>`` (a JSON file
    with ``{"files": {file name: {"sha256": ..., "bytes": ...}}}``) or ``null`` (none published:
    pinned on first use, and the pin is reported). ``{world}`` is the procedural world's folder.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    urls: tuple[Annotated[str, Field(pattern=r"^(https?|file):.+$")], ...]
    size: Positive | None = None
    """Bytes, as published; checked."""
    about: Positive | None = None
    """Approximate bytes where no size is published: for plans of disk space, not checked."""
    unpacked_about: Positive | None = None
    """Approximate bytes of the unpacked archive where they differ much from the archive's."""
    checksum: (
        Annotated[
            str,
            Field(
                pattern=r"^(sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}|md5:[0-9a-f]{32}|manifest:.+)$"
            ),
        ]
        | None
    ) = None
    unpack: bool = False
    licence: str
    notes: str = ""


class Project:
    """All parameters of one scale, loaded from ``folder`` (``params/``) and cross-checked.

    Attributes:
        name, scale: the scale's name and content.
        prefix: ``""`` for ``paper``, else ``"<scale>/"`` (paths of results).
        assets, benchmarks: entries of these files.
        external: entries of that file, of every scale.
        tables: entries of that file, with the cells of external systems of this scale alone.
        variants: every inference variant, resolved against the scale's ``inference`` block.
    """

    def __init__(self, scale: str, *, folder: Path = Path("params")) -> None:
        self.folder, self.name = folder, scale
        self.prefix = "" if scale == "paper" else f"{scale}/"
        scales = sorted(path.stem for path in (folder / "scales").glob("*.yaml"))
        choose("scale", scale, scales, str(folder / "scales"), "scale")
        source = self._source = str(folder / "scales" / f"{scale}.yaml")
        self._scale_data = read_yaml(Path(source))
        self.scale = validate(ScaleParams, self._scale_data, source=source)
        self._run_data = read_entries(folder / "runs.yaml")
        self.variants = self._resolved_variants()
        self.assets = self._mapping("assets.yaml", AssetParams)
        self.benchmarks = self._mapping("benchmarks.yaml", BenchmarkParams)
        for role, dataset in ROLES.items():
            if role not in self.scale.assets:
                raise InputError(f"{source}: assets.{role}: missing; data set {dataset} needs it")
        for role, asset in self.scale.assets.items():
            choose("role", role, ROLES, source, "assets")
            choose("asset", asset, self.assets, source, f"assets.{role}")
        for size, tower in self.scale.towers.sam.items():
            choose("asset", tower.asset, self.assets, source, f"towers.sam.{size}.asset")
        clip = self.scale.towers.clip
        for name in (*clip.files, *([clip.asset] if clip.asset is not None else [])):
            choose("asset", name, self.assets, source, "towers.clip")
        measured = {name: benchmark.metrics for name, benchmark in self.benchmarks.items()}
        self.external = self._mapping(
            "external.yaml",
            ExternalParams,
            choices={"scale": scales, "trained_on": TRAINABLE},
            may_be_empty=True,
        )
        check_external(
            self.external,
            source=str(folder / "external.yaml"),
            runs=self._run_data,
            scales=scales,
            measured=measured,
        )
        self.tables = self._checked_tables(measured)

    def _checked_tables(self, measured: Mapping[str, Collection[str]]) -> dict[str, TableParams]:
        names: dict[str, Collection[str]] = {
            "run": self._run_data,
            "benchmark": self.benchmarks,
            "variant": self.variants,
            "external": self.external,
        }
        tables = self._mapping("tables.yaml", TableParams, choices=names)
        for name, table in tables.items():
            check_table(
                name,
                table,
                source=str(self.folder / "tables.yaml"),
                choices=names,
                measured=measured,
                predicted={name: entry.predictions for name, entry in self.external.items()},
            )
        here = [name for name, entry in self.external.items() if entry.scale == self.name]
        return {name: table.showing(here) for name, table in tables.items()}

    def _mapping(
        self,
        file: str,
        model: type[P],
        *,
        choices: Mapping[str, Collection[str]] | None = None,
        may_be_empty: bool = False,
    ) -> dict[str, P]:
        path = self.folder / file
        return {
            name: validate(model, data, source=f"{path}: {name}", choices=choices)
            for name, data in read_entries(path, may_be_empty=may_be_empty).items()
        }

    def _resolved_variants(self) -> dict[str, InferenceParams]:
        path = self.folder / "variants.yaml"
        differences = read_entries(path)
        if differences.get(DEFAULT_VARIANT) != {}:
            raise InputError(
                f"{path}: {DEFAULT_VARIANT}: must be there and be {{}}: it is the scale's "
                "inference block as it stands; give a difference a name of its own"
            )
        for name, difference in differences.items():
            if "resolution" in difference:
                valid = sorted(InferenceParams.model_fields.keys() - {"resolution"})
                raise InputError(
                    f"{path}: {name}.resolution: variants share one forward pass of an image; set "
                    f"inference.resolution in {self._source}; valid keys: {', '.join(valid)}"
                )
        return {
            name: validate(
                InferenceParams,
                merge(self._scale_data["inference"], difference),
                source=f"{path}: {name}",
            )
            for name, difference in differences.items()
        }

    def variants_at(self, run: str, benchmark: str, condition: str) -> dict[str, InferenceParams]:
        """The variants to compute there: the default, and all that any table asks for."""
        wanted = {
            place.variant
            for table in self.tables.values()
            for place in table.places()
            if (place.run, place.benchmark, place.condition) == (run, benchmark, condition)
        }
        return {
            name: inference
            for name, inference in self.variants.items()
            if name in wanted | {DEFAULT_VARIANT}
        }

    @cached_property
    def runs(self) -> dict[str, RunParams]:
        """Every run, resolved against the scale's defaults, with the first seed."""
        return {name: self.run(name) for name in self._run_data}

    def run(self, name: str, *, seed: int | None = None) -> RunParams:
        """One resolved run: the scale's defaults with the run's difference put over them.

        Args:
            seed: one of the scale's; default: the first.

        Raises:
            InputError: an unknown run or seed, or a difference that does not fit.
        """
        path = str(self.folder / "runs.yaml")
        choose("run", name, self._run_data, path, "run")
        keys = ("model", "loss", "training", "templates")
        defaults = {key: self._scale_data[key] for key in keys}
        definition = validate(
            RunDefinition, merge(defaults, self._run_data[name]), source=f"{path}: {name}"
        )
        if definition.sam is not None:
            choose("SAM size", definition.sam, self.scale.towers.sam, path, f"{name}.sam")
        if definition.start_from is not None:
            choose("asset", definition.start_from, self.assets, path, f"{name}.start_from")
        seeds = self.scale.seeds
        if seed is None:
            seed = seeds[0]
        choose("seed", str(seed), [str(known) for known in seeds], self._source, "seeds")
        return RunParams(**dict(definition), seed=seed)
