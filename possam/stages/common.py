"""Shared by several stages: identities, fetched assets, frozen towers, provenance."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.model.options import CLIP
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, write_json
from possam.runtime.memory import keep_freed_memory
from possam.runtime.provenance import provenance

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from possam.model.encoders.clip import FrozenClip
    from possam.model.encoders.sam import SamEncoder
    from possam.model.encoders.text import TextEmbeddings

_TEXT_CODE = ("possam.model.encoders.clip", "possam.model.encoders.text")
"""Entry modules of the code that turns class names into embeddings."""


def set_up_process(project: Project) -> None:
    """Set torch's threads to the scale's number and let it keep the memory that it frees.

    Two jobs of one thread each are faster than one job of two.
    """
    import torch

    torch.set_num_threads(project.scale.threads)
    keep_freed_memory()


def check_device(device: str) -> str:
    """Return ``device`` if it can be used.

    Raises:
        InputError: unknown, or CUDA without a GPU; nothing falls back to another device.
    """
    import torch

    kind = device.split(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise InputError(f"--device: unknown device {device!r}; valid choices: cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: cuda was asked for, but torch sees no GPU; use --device cpu")
    return device


@dataclass
class StageRecord:
    """The content of a stage's ``provenance.json``, which :meth:`write` puts beside the result."""

    stage: str
    parameters: Mapping[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    started: float = field(default_factory=time.time)

    def write(self, directory: Path) -> None:
        """Write ``directory/provenance.json`` atomically."""
        content = provenance(
            stage=self.stage,
            parameters=self.parameters,
            inputs=self.inputs,
            seed=self.seed,
            started=self.started,
            root=Path("."),
        )
        write_json(directory / "provenance.json", content)


def asset_record(layout: Layout, asset: str) -> dict[str, Any]:
    """The record of a fetched asset (``file``, ``sha256``, ...).

    Raises:
        InputError: the asset has not been fetched.
    """
    path = layout.asset_record(asset)
    if not path.is_file():
        scale = layout.project.name
        raise InputError(
            f"{path}: asset {asset!r} is missing; fetch it: possam download {asset} --scale {scale}"
        )
    record = read_json(path)
    if not isinstance(record, dict) or "sha256" not in record:
        raise InputError(f"{path}: not the record of an asset; delete it and fetch the asset again")
    return record


def asset_file(layout: Layout, asset: str) -> Path:
    """The fetched file of an asset; checks that its record exists."""
    asset_record(layout, asset)
    return layout.assets / layout.project.assets[asset].file


def asset_path(layout: Layout, asset: str) -> Path:
    """The fetched file of an asset, or the folder of its unpacked archive.

    Raises:
        InputError: the asset has not been fetched, or its archive not unpacked.
    """
    if not layout.project.assets[asset].unpack:
        return asset_file(layout, asset)
    asset_record(layout, asset)
    folder = layout.raw(asset)
    if not (folder / "unpacked.json").is_file():
        raise InputError(
            f"{folder}: the archive of asset {asset!r} is not unpacked; fetch it again: "
            f"possam download {asset} --scale {layout.project.name}"
        )
    return folder


def tower_hash(layout: Layout, tower: str) -> str:
    """SHA-256 of the weights file of a frozen tower: ``clip`` or a SAM size."""
    towers = layout.project.scale.towers
    asset = towers.clip.asset if tower == CLIP else towers.sam[tower].asset
    if asset is None:
        raise InputError(
            f"params/scales/{layout.project.name}.yaml: towers.clip.asset: no weights are named"
        )
    return str(asset_record(layout, asset)["sha256"])


def frozen_hashes(layout: Layout, sam: str | None) -> dict[str, str]:
    """Hashes of the towers that trained weights belong to (only CLIP's if ``sam`` is None)."""
    own = {} if sam is None else {"sam": tower_hash(layout, sam)}
    return {**own, CLIP: tower_hash(layout, CLIP)}


def load_whole_sam(layout: Layout, size: str) -> "Sam":
    """SAM of ``size`` with its prompt encoder and mask decoder."""
    from possam.model.encoders.sam import load_sam

    towers = layout.project.scale.towers
    if size not in towers.sam:
        raise InputError(f"SAM size {size!r} is unknown; valid choices: {', '.join(towers.sam)}")
    tower = towers.sam[size]
    return load_sam(asset_file(layout, tower.asset), architecture=tower.architecture)


def load_sam_tower(layout: Layout, size: str) -> "SamEncoder":
    """The frozen SAM image encoder of ``size``."""
    from possam.model.encoders.sam import SamEncoder

    return SamEncoder(load_whole_sam(layout, size).image_encoder)


def clip_config(layout: Layout) -> Path | str:
    """open_clip config of the CLIP tower: a fetched JSON file, or the name of a built-in model."""
    clip = layout.project.scale.towers.clip
    if clip.config in clip.files:
        for asset in clip.files:
            asset_file(layout, asset)
        return asset_file(layout, clip.config)
    return clip.config


def load_clip_tower(layout: Layout) -> "FrozenClip":
    """The frozen CLIP."""
    from possam.model.encoders.clip import load_clip

    clip = layout.project.scale.towers.clip
    checkpoint = asset_file(layout, clip.asset) if clip.asset else None
    return load_clip(config=clip_config(layout), checkpoint=checkpoint)


def load_towers(layout: Layout, sam: str | None) -> "tuple[SamEncoder | None, FrozenClip]":
    """The frozen towers: SAM of size ``sam`` (None: no SAM) and CLIP."""
    return None if sam is None else load_sam_tower(layout, sam), load_clip_tower(layout)


def embed_names(
    layout: Layout,
    clip: "FrozenClip",
    vocabulary: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
) -> "TextEmbeddings":
    """Embed the vocabulary with the scale's CLIP, or read the embeddings that are on disk.

    Args:
        clip: the CLIP of :func:`load_clip_tower`, on any device.
        vocabulary: synonyms of each class.
        templates: sentences with one ``{}`` for the name.

    Returns:
        Embeddings on the CPU.

    Raises:
        InputError: an empty or blank vocabulary, a bad template, a damaged file of embeddings.
    """
    from possam.runtime.provenance import package_versions
    from possam.stages.text_cache import embed_cached

    own, versions = layout.project.scale.towers.clip, package_versions()
    encoder = {
        "weights": tower_hash(layout, CLIP),
        "config": own.config,
        "files": {asset: str(asset_record(layout, asset)["sha256"]) for asset in own.files},
        "code": code_identity(_TEXT_CODE),
        # Rounding differs between kinds of devices and versions of these packages.
        "device": clip.image_mean.device.type,
        "packages": {name: versions[name] for name in ("torch", "open_clip_torch")},
    }
    return embed_cached(clip, vocabulary, templates=templates, encoder=encoder, folder=layout.text)


def tower_widths(*, sam: "SamEncoder | None", clip: "FrozenClip") -> dict[str, Any]:
    """What ``build_possam`` needs to know of the given towers, by the names of its arguments."""
    return {
        "backbone_channels": list(clip.stage_channels) if sam is None else [sam.channels],
        "clip_channels": clip.dense_channels,
        "embed_dim": clip.embed_dim,
        "logit_scale": clip.logit_scale,
    }


def finished_run(layout: Layout, name: str, seed: int) -> dict[str, Any]:
    """The content of ``run.json`` of a finished training.

    Raises:
        InputError: it is not finished.
    """
    path = layout.run(name, seed) / "run.json"
    if not path.is_file():
        scale = layout.project.name
        raise InputError(
            f"{path}: run {name!r} is not trained with seed {seed} at scale {scale}; train it: "
            f"possam train {name} --seed {seed} --scale {scale}"
        )
    record: dict[str, Any] = read_json(path)
    return record


def code_identity(modules: Sequence[str], *, package: Path | None = None) -> str:
    """Hash of the code behind a stage; comments and docstrings do not count.

    Args:
        modules: the entry modules; what they import counts too.
        package: folder of the code; default: this one.
    """
    from possam.pipeline.codehash import PACKAGE, code_hash

    return code_hash(*modules, package=PACKAGE if package is None else package)


def worker_count(requested: int) -> int:
    """Number of worker processes: at least one, at most the cores of this machine."""
    return max(1, min(requested, os.cpu_count() or 1))
