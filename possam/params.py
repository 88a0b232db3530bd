"""Typed parameters: everything in ``params/``, checked at load.

A scale file (``params/scales/<scale>.yaml``) holds the defaults of every run; ``params/runs.yaml``
writes each run as its difference from them. Unknown keys, wrong types and dangling references are
errors that name the file, the key and the valid choices.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from possam.errors import InputError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Weight = Annotated[float, Field(ge=0.0)]
Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0)]
DatasetName = Literal["coco", "ade20k"]
Condition = Literal["trained", "untrained", "shuffled_names"]
TrainedSplit = Literal["train", "val"]
CONDITIONS: tuple[str, ...] = get_args(Condition)


class Params(BaseModel):
    """Base: unknown keys refused, no silent conversion of strings to numbers, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ModelParams(Params):
    """Widths and choices of the trainable part (paper, sections 3.3 and 3.4)."""

    hidden_dim: Positive
    queries: Positive
    heads: Positive
    pyramid: Literal["fpn", "resample"]
    pixel_encoder_layers: Count
    pixel_encoder_ffn: Positive
    deformable_points: Positive
    decoder_layers: Positive
    decoder_ffn: Positive
    pooling: Literal["ldp", "cross_attention", "sam", "clip"]
    pooling_dim: Positive
    pooling_heads: Positive
    pooling_interaction: Literal["mask", "image"]
    sam_features: Literal["mask_features", "neck", "queries"]
    iou_head: bool

    @model_validator(mode="after")
    def _divisible(self) -> "ModelParams":
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of heads and of 4")
        if self.pooling_dim % self.pooling_heads:
            raise ValueError(f"pooling_dim {self.pooling_dim} must be a multiple of pooling_heads")
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
    """The recipe. ``batch_size`` is the effective one, over all devices and accumulation steps."""

    iterations: Positive
    batch_size: Positive
    learning_rate: Rate
    weight_decay: Weight
    warmup: Count
    milestones: tuple[Positive, ...]
    gamma: Rate
    clip_norm: Rate
    precision: Literal["fp32", "bf16"]
    feature_cache: bool
    augmentation: AugmentationParams
    checkpoint_every: Positive
    log_every: Positive
    workers: Count

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
    class_chunk: Positive


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


class EvaluationParams(Params):
    """Bootstrap settings and the optional cross-check against panopticapi."""

    bootstrap_samples: Positive
    bootstrap_seed: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    check_panopticapi: bool
    batch_size: Positive


class ScaleParams(Params):
    """One scale: assets, towers and the defaults of every run."""

    title: str
    synthetic: bool
    seed: Count
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


class RunParams(Params):
    """One resolved training run: what the trained weights depend on, and nothing else."""

    sam: str
    train: DatasetName
    seed: Count
    model: ModelParams
    loss: LossParams
    training: TrainingParams
    templates: tuple[str, ...]
    start_from: str | None = None
    """Asset of the Mask2Former checkpoint that the decoders start from; ``None``: random."""


class BenchmarkParams(Params):
    """One test set and what is measured on it."""

    dataset: DatasetName
    split: TrainedSplit
    metrics: tuple[Literal["panoptic", "instance", "semantic"], ...]


class CellParams(Params):
    """Where a group of reproduced columns comes from."""

    run: str
    benchmark: str


class RowParams(Params):
    """One row: its published name, and the runs that reproduce it (none: published only)."""

    name: str
    cells: dict[str, CellParams] = {}


class ColumnParams(Params):
    """One column: its key in the published CSV, the group (direction) and the metric shown."""

    key: str
    group: str
    metric: str
    title: str


class ControlParams(Params):
    """A row beside the table that must fail: an untrained decoder, or shuffled class names."""

    name: str
    run: str
    benchmark: str
    condition: Condition


class TableParams(Params):
    """One table of the paper."""

    title: str
    published: str
    groups: dict[str, str]
    columns: tuple[ColumnParams, ...]
    rows: tuple[RowParams, ...]
    controls: tuple[ControlParams, ...] = ()


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


P = TypeVar("P", bound=Params)


def _describe(error: Mapping[str, Any], root: Mapping[str, Any], choices: str) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "(top level)"
    text = f"{where}: {error['msg']}"
    if error["type"] != "missing" and not isinstance(error.get("input"), dict | list):
        text += f" (got {error.get('input')!r})"
    return text + choices


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names that are valid where an unknown key was found."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        inner = getattr(field, "annotation", None)
        candidates = [inner, *getattr(inner, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if found:
            model = found[0]
    return sorted(model.model_fields)


def validate(model: type[P], data: Any, *, source: str) -> P:
    """Check ``data`` (parsed YAML) against ``model``.

    Raises:
        InputError: one line a fault: ``source``, dotted key, what is wrong, the valid choices.
    """
    try:
        return model.model_validate(_tuples(data))
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            choices = ""
            if fault["type"] == "extra_forbidden":
                choices = f"; valid keys: {', '.join(_fields_at(model, fault['loc']))}"
            lines.append(f"{source}: {_describe(fault, data, choices)}")
        raise InputError("\n".join(lines)) from error


def _tuples(value: Any) -> Any:
    """YAML lists become tuples, and whole numbers are kept: strict models take tuples."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse one YAML mapping; a key written twice is refused (YAML would keep the last)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path}: a mapping is expected at the top level")
    return data


class _UniqueKeys(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``difference`` put over it, mappings merged key by key."""
    result = dict(base)
    for key, value in difference.items():
        old = result.get(key)
        result[key] = (
            merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
        )
    return result


def _choose(kind: str, name: str, valid: Any, source: str, key: str) -> None:
    if name not in valid:
        raise InputError(
            f"{source}: {key}: unknown {kind} {name!r}; valid choices: {', '.join(sorted(valid))}"
        )


class Project:
    """All parameters of one scale, loaded from ``folder`` (``params/``) and cross-checked.

    Attributes:
        name, scale: the scale's name and content.
        prefix: ``""`` for ``paper``, else ``"<scale>/"`` (paths of results).
    """

    def __init__(self, scale: str, *, folder: Path = Path("params")) -> None:
        self.folder, self.name = folder, scale
        self.prefix = "" if scale == "paper" else f"{scale}/"
        scales = sorted(path.stem for path in (folder / "scales").glob("*.yaml"))
        _choose("scale", scale, scales, str(folder / "scales"), "scale")
        source = folder / "scales" / f"{scale}.yaml"
        self._scale_data = read_yaml(source)
        self.scale = validate(ScaleParams, self._scale_data, source=str(source))
        self.assets = self._mapping("assets.yaml", AssetParams)
        self.benchmarks = self._mapping("benchmarks.yaml", BenchmarkParams)
        self.tables = self._mapping("tables.yaml", TableParams)
        self._run_data = read_yaml(folder / "runs.yaml")
        for role, asset in self.scale.assets.items():
            _choose("asset", asset, self.assets, str(source), f"assets.{role}")
        for size, tower in self.scale.towers.sam.items():
            _choose("asset", tower.asset, self.assets, str(source), f"towers.sam.{size}.asset")
        clip = self.scale.towers.clip
        for name in (*clip.files, *([clip.asset] if clip.asset is not None else [])):
            _choose("asset", name, self.assets, str(source), "towers.clip")
        self._check_tables()

    def _mapping(self, file: str, model: type[P]) -> dict[str, P]:
        path = self.folder / file
        return {
            name: validate(model, data, source=f"{path}: {name}")
            for name, data in read_yaml(path).items()
        }

    @cached_property
    def runs(self) -> dict[str, RunParams]:
        """Every run, resolved against the scale's defaults."""
        return {name: self.run(name) for name in self._run_data}

    def run(self, name: str) -> RunParams:
        """One resolved run: the scale's defaults with the run's difference put over them."""
        path = str(self.folder / "runs.yaml")
        _choose("run", name, self._run_data, path, "run")
        keys = ("seed", "model", "loss", "training", "templates")
        defaults = {key: self._scale_data[key] for key in keys}
        difference = self._run_data[name]
        if not isinstance(difference, dict):
            raise InputError(f"{path}: {name}: a mapping is expected, not {difference!r}")
        run = validate(RunParams, merge(defaults, difference), source=f"{path}: {name}")
        _choose("SAM size", run.sam, self.scale.towers.sam, path, f"{name}.sam")
        if run.start_from is not None:
            _choose("asset", run.start_from, self.assets, path, f"{name}.start_from")
        return run

    def _check_tables(self) -> None:
        path = str(self.folder / "tables.yaml")
        for name, table in self.tables.items():
            names = [row.name for row in table.rows]
            for row in table.rows:
                if names.count(row.name) > 1:
                    raise InputError(f"{path}: {name}: two rows are named {row.name!r}")
                for group, cell in row.cells.items():
                    key = f"{name}.rows[{row.name}].cells.{group}"
                    _choose("column group", group, table.groups, path, key)
                    self._check_cell(cell.run, cell.benchmark, path, key)
            for column in table.columns:
                _choose("column group", column.group, table.groups, path, f"{name}.{column.key}")
                _choose("metric", column.metric, METRICS, path, f"{name}.{column.key}.metric")
            for control in table.controls:
                self._check_cell(control.run, control.benchmark, path, f"{name}.{control.name}")

    def _check_cell(self, run: str, benchmark: str, path: str, key: str) -> None:
        _choose("run", run, self._run_data, path, f"{key}.run")
        _choose("benchmark", benchmark, self.benchmarks, path, f"{key}.benchmark")


METRICS: dict[str, str] = {
    "pq": "PQ",
    "sq": "SQ",
    "rq": "RQ",
    "pq_things": "PQ_th",
    "pq_stuff": "PQ_st",
    "pq_seen": "PQ_seen",
    "pq_unseen": "PQ_unseen",
    "pq_class_agnostic": "class-agnostic PQ",
    "map": "mAP",
    "miou": "mIoU (classes in the ground truth)",
    "miou_union": "mIoU (classes in ground truth or prediction)",
}
"""Metrics that a table column can show (all in percent), with their printed names."""
