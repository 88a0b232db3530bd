"""From a name, a folder, a file of weights or a hub's id to a model that is ready."""

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from possam.evaluation.training_free import TrainingFreeSegmenter
from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture, load_sam
from possam.model.encoders.widths import tower_widths
from possam.model.options import CLIP, Precision
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.params.project import Project
from possam.pictures.config import CONFIG, FORMAT, FileParams, ModelConfig, read_config
from possam.pictures.files import MODELS, SHIPPED, locate, shipped_models, shipped_project
from possam.pictures.model import Model
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file
from possam.runtime.gpu_driver import check_device
from possam.training.checkpoint import load_trained, read_metadata

DEFAULT = "possam_h_coco"
"""The shipped model that is taken where none is named."""
TRAINING_FREE = "training-free-"
"""Before a SAM size: SAM's automatic masks named by CLIP, with the official weights."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_KINDS = ("*.json", "*.safetensors", "*.pth", "*.gz")
_SCALES = ("mini", "paper")
"""Scales whose towers a file of weights may have been trained over."""


def load_model(source: str | Path | None = None, *, device: str = "cpu") -> Model:
    """Load a model; see :func:`possam.load`.

    Raises:
        InputError: nothing of this name, a damaged or incomplete folder, no network.
        WrongVariantError: the weights were trained over other towers.
    """
    text = DEFAULT if source is None else str(source)
    path = Path(text)
    if path.is_dir():
        model = load_folder(path)
    elif path.is_file():
        model = load_weights(path)
    elif text in shipped_models():
        model = load_folder(MODELS / text)
    elif text.startswith(TRAINING_FREE):
        model = load_training_free(text.removeprefix(TRAINING_FREE), shipped_project("paper"))
    elif _HUB_ID.fullmatch(text) and not path.parent.is_dir():
        model = load_folder(_from_hub(text))
    else:
        raise InputError(
            f"{text}: no such folder, weights or model; shipped: {', '.join(shipped_models())}; "
            f"without a training: {TRAINING_FREE}b, -l, -h; else a folder of possam export, a "
            "weights.safetensors, or owner/name on the model hub"
        )
    return move(model, device)


def move(model: Model, device: str) -> Model:
    """Put a model on a device; InputError if it cannot be used."""
    model.segmenter.to(check_device(device))
    return model


def load_folder(folder: Path) -> Model:
    """The model of a folder that :mod:`possam.stages.export` wrote."""
    config = read_config(folder)
    if config.weights is None:
        raise InputError(f"{folder / CONFIG}: names no weights; export a trained run")
    return _trained(config, locate(config.weights, [folder]), [folder])


def load_weights(
    weights: Path, *, project: Project | None = None, folders: Sequence[Path] = ()
) -> Model:
    """The model of a training's file, over the towers that it was trained over.

    Args:
        project: parameters of its scale; None: the scale whose towers are these, as shipped.
        folders: where towers may lie, besides the shipped ones and the user's cache.
    """
    return _trained(describe(weights, project), weights, [*folders, weights.parent])


def load_training_free(size: str, project: Project, *, folders: Sequence[Path] = ()) -> Model:
    """SAM of ``size`` and CLIP of a scale, without any training."""
    config = _config(project, f"{TRAINING_FREE}{size}", size, trained=False)
    assert config.sam is not None and config.sam_architecture is not None
    sam = load_sam(locate(config.sam, folders), architecture=config.sam_architecture)
    clip = load_clip(config=_clip_config(config, folders), checkpoint=locate(config.clip, folders))
    if config.automatic_masks is None:
        raise ValueError("a model without a training has options of automatic masks")
    segmenter = TrainingFreeSegmenter(
        sam=sam,
        clip=clip,
        options=config.automatic_masks,
        precision=config.precision,
        padding=project.scale.model.padding,
    )
    return Model(segmenter, config)


def describe(weights: Path, project: Project | None = None) -> ModelConfig:
    """What a training's file needs to run: the towers of a scale that have its hashes.

    ``project``: as of :func:`load_weights`. Raises InputError if no scale has such towers.
    """
    header = read_metadata(weights)
    projects = [project] if project is not None else [shipped_project(name) for name in _SCALES]
    for each in projects:
        sizes = [None] if "sam" not in header["frozen"] else list(each.scale.towers.sam)
        for size in sizes:
            config = _config(each, weights.parent.parent.name or weights.stem, size, trained=True)
            own = {CLIP: config.clip.sha256}
            if config.sam is not None:
                own["sam"] = config.sam.sha256
            if own == header["frozen"]:
                file = FileParams(file=weights.name, sha256=sha256_file(weights))
                return config.model_copy(update={"weights": file})
    names = ", ".join(each.name for each in projects)
    hashes = ", ".join(f"{tower} {digest[:12]}..." for tower, digest in header["frozen"].items())
    raise InputError(
        f"{weights}: was trained over towers ({hashes}) that are not those of scale {names}; name "
        "the scale that it was trained at, or train it anew"
    )


def _config(project: Project, name: str, size: str | None, *, trained: bool) -> ModelConfig:
    """The description of a model over a scale's towers, without its weights."""
    scale = project.scale
    if size is not None and size not in scale.towers.sam:
        raise InputError(
            f"--sam: unknown size {size!r}; valid choices: {', '.join(scale.towers.sam)}"
        )
    clip = scale.towers.clip
    if clip.asset is None:
        raise InputError(f"params/scales/{project.name}.yaml: towers.clip.asset: none is named")
    sam = None if size is None else scale.towers.sam[size]
    own = clip.config in clip.files
    inference = scale.inference.model_copy(update=dict(scale.predict))
    return ModelConfig(
        format=FORMAT,
        name=name,
        scale=project.name,
        synthetic=scale.synthetic,
        precision=scale.towers.precision,
        templates=scale.templates,
        inference=inference,
        sam_architecture=None if sam is None else sam.architecture,
        sam=None if sam is None else _file(project, sam.asset),
        clip_config=project.assets[clip.config].file if own else clip.config,
        clip=_file(project, clip.asset),
        clip_files=tuple(_file(project, asset) for asset in clip.files),
        weights=None,
        automatic_masks=None if trained else scale.automatic_masks,
    )


def _file(project: Project, name: str) -> FileParams:
    """A tower's file, with the SHA-256 that ``assets.yaml`` or a manifest beside it states."""
    asset = project.assets[name]
    kind, _, value = (asset.checksum or "").partition(":")
    if kind == "manifest":
        manifest = read_json(SHIPPED / value)
        return FileParams(file=asset.file, sha256=str(manifest["files"][asset.file]["sha256"]))
    if kind != "sha256":
        raise InputError(f"assets.yaml: {name}.checksum: a sha256 is needed for a model's tower")
    return FileParams(file=asset.file, sha256=value, asset=name)


def _clip_config(config: ModelConfig, folders: Sequence[Path]) -> Path | str:
    """An open_clip model's name, or the path of its JSON, beside which all of its files lie."""
    places = {each.file: locate(each, folders) for each in config.clip_files}
    return places.get(config.clip_config, config.clip_config)


def _trained(config: ModelConfig, weights: Path, folders: Sequence[Path]) -> Model:
    clip = load_clip(config=_clip_config(config, folders), checkpoint=locate(config.clip, folders))
    frozen, sam = {CLIP: config.clip.sha256}, None
    if config.sam is not None and config.sam_architecture is not None:
        frozen["sam"] = config.sam.sha256
        whole = load_sam(locate(config.sam, folders), architecture=config.sam_architecture)
        sam = SamEncoder(whole.image_encoder)
    possam = load_trained(weights, frozen=frozen)
    segmenter = Segmenter(sam=sam, clip=clip, possam=possam, precision=config.precision)
    return Model(segmenter, config, training_vocabulary=read_metadata(weights)["vocabulary"])


def random_model(size: str, project: Project, *, folders: Sequence[Path] = ()) -> Model:
    """A model and towers with random weights, to try an architecture without any weights.

    ``size`` is the SAM's; an InputError if the scale has none of it. ``folders``: where CLIP's
    configuration may lie.
    """
    config = _config(project, f"random_{size}", size, trained=True)
    return Model(random_segmenter(project, size, folders=folders), config)


def random_segmenter(
    project: Project, size: str, *, precision: Precision | None = None, folders: Sequence[Path] = ()
) -> Segmenter:
    """A model and towers with random weights, to try the command without any weights.

    ``size`` is the SAM's (InputError if unknown), ``precision`` the towers' (default: the scale's).
    """
    scale, seed = project.scale, project.scale.seeds[0]
    if size not in scale.towers.sam:
        raise InputError(
            f"--sam: unknown size {size!r}; valid choices: {', '.join(scale.towers.sam)}"
        )
    architecture = scale.towers.sam[size].architecture
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = SamEncoder(build_sam(find_architecture(architecture)).image_encoder)
        config = _clip_config(_config(project, size, size, trained=True), folders)
        clip = load_clip(config=config, checkpoint=None, random_init=True)
    possam = build_possam(scale.model, **tower_widths(sam=sam, clip=clip), seed=seed)
    return Segmenter(
        sam=sam, clip=clip, possam=possam, precision=precision or scale.towers.precision
    )


def _from_hub(name: str) -> Path:
    """The folder of a model on the Hugging Face hub, in that library's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.pth", "*.gz"])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{name}: cannot be fetched from the model hub ({reason}); check the name and the "
            "network, or give a folder"
        ) from error
