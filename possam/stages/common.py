"""Shared by several stages: identities, fetched assets, provenance. Loads no model."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from possam.model.options import CLIP
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pipeline.codehash import PACKAGE, code_hash
from possam.runtime.caches import settle_triton
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, write_json
from possam.runtime.memory import keep_freed_memory
from possam.runtime.provenance import provenance


def set_up_process(project: Project) -> None:
    """Set torch's number of threads to the scale's, and keep freed memory for later tensors."""
    import torch

    torch.set_num_threads(project.scale.threads)
    if torch.cuda.is_available():
        settle_triton()
    keep_freed_memory()


@dataclass
class StageRecord:
    """The content of a stage's ``provenance.json``, which :meth:`write` puts beside the result.

    ``accepted_code``: changes of the code that a training went on after.
    """

    stage: str
    parameters: Mapping[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    started: float = field(default_factory=time.time)
    accepted_code: Sequence[Mapping[str, Any]] = ()

    def write(self, directory: Path) -> None:
        """Write ``directory/provenance.json`` atomically."""
        content = provenance(**vars(self))
        write_json(directory / "provenance.json", content)


def asset_record(layout: Layout, asset: str) -> dict[str, Any]:
    """The record of a fetched asset (``file``, ``sha256``, ...).

    Raises:
        InputError: the asset has not been fetched.
    """
    path, scale = layout.asset_record(asset), layout.project.name
    command = f"possam download {asset} --scale {scale}"
    record = read_json(path, missing=f"asset {asset!r} is missing; fetch it: {command}")
    if not isinstance(record, dict) or "sha256" not in record:
        raise InputError(f"{path}: not the record of an asset; delete it and fetch the asset again")
    return record


def asset_file(layout: Layout, asset: str) -> Path:
    """The fetched file of an asset; errors as :func:`asset_record`."""
    asset_record(layout, asset)
    return layout.assets / layout.project.assets[asset].file


def asset_path(layout: Layout, asset: str) -> Path:
    """The fetched file of an asset, or the folder of its unpacked archive.

    Raises:
        InputError: the asset has not been fetched, or its archive not unpacked.
    """
    file, folder = asset_file(layout, asset), layout.raw(asset)
    if not layout.project.assets[asset].unpack:
        return file
    if not (folder / "unpacked.json").is_file():
        raise InputError(
            f"{folder}: the archive of asset {asset!r} is not unpacked; fetch it again: "
            f"possam download {asset} --scale {layout.project.name}"
        )
    return folder


def tower_hash(layout: Layout, tower: str) -> str:
    """SHA-256 of a frozen tower's weights (``clip`` or a SAM size); InputError if it has none."""
    towers = layout.project.scale.towers
    asset = towers.clip.asset if tower == CLIP else towers.sam[tower].asset
    if asset is None:
        raise InputError(
            f"params/scales/{layout.project.name}.yaml: towers.clip.asset: no weights are named"
        )
    return str(asset_record(layout, asset)["sha256"])


def frozen_hashes(layout: Layout, sam: str | None) -> dict[str, str]:
    """SHA-256 of a training's towers, by ``clip`` and (unless ``sam`` is None) ``sam``."""
    own = {} if sam is None else {"sam": tower_hash(layout, sam)}
    return {**own, CLIP: tower_hash(layout, CLIP)}


def clip_config(layout: Layout) -> Path | str:
    """open_clip config of the CLIP tower: a fetched JSON file, or the name of a built-in model."""
    clip = layout.project.scale.towers.clip
    if clip.config in clip.files:
        for asset in clip.files:
            asset_file(layout, asset)
        return asset_file(layout, clip.config)
    return clip.config


def finished_run(layout: Layout, name: str, seed: int) -> dict[str, Any]:
    """The content of ``run.json`` of a finished training.

    Raises:
        InputError: it is not finished.
    """
    path, scale = layout.run(name, seed) / "run.json", layout.project.name
    missing = (
        f"run {name!r} is not trained with seed {seed} at scale {scale}; train it: "
        f"possam train {name} --seed {seed} --scale {scale}"
    )
    found: dict[str, Any] = read_json(path, missing=missing)
    return found


def code_identity(
    modules: Sequence[str], *, package: Path | None = None, device: str | None = None
) -> str:
    """:func:`code_hash` of entry modules; ``package``: folder of the code, default: this one."""
    return code_hash(*modules, package=package or PACKAGE, device=device)


def worker_count(requested: int) -> int:
    """Number of worker processes: at least one, at most the cores of this machine."""
    return max(1, min(requested, os.cpu_count() or 1))
