"""The directory of a run, the checkpoints in it, and the file of its trained weights.

A checkpoint is a directory ``step_<finished steps>`` that gets its name when it is complete, with
the hashes of its files in ``manifest.json``. Only tensors and plain values are unpickled.
"""

import glob
import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from possam.model.possam import PosSAM, rebuild_possam
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.files import (
    atomic_directory,
    atomic_path,
    hash_json,
    read_json,
    sha256_file,
    write_json,
)

FORMAT = "possam-weights-2"
METADATA_KEY = "possam"
KEPT = 2
"""Checkpoints kept per run: the newest, and the one before, in case the newest is damaged."""

_FILES = ("weights.safetensors", "state.pt", "metrics.jsonl")
_NAME = re.compile(r"step_(\d{9})")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint.

    Attributes:
        step: finished steps.
        weights: tensors by name, float32, on the CPU.
        optimizer: its state dict.
        counters: JSON-able values of the loop.
        metrics: the metrics file as it was at ``step``.
    """

    path: Path
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    counters: dict[str, Any]
    metrics: Path


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of all tensors of the state dict."""
    digest = hashlib.sha256()
    for name, value in _weights(model).items():
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of ``step`` finished steps."""
    return folder / f"step_{step:09d}"


def save_checkpoint(
    folder: Path,
    *,
    step: int,
    identity_hash: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    counters: Mapping[str, Any],
    metrics: Path,
) -> Path:
    """Write ``folder/step_<step>`` atomically, then remove old ones (:func:`rotate`)."""
    path = checkpoint_path(folder, step)
    with atomic_directory(path) as temporary:
        save_file(_weights(model), temporary / "weights.safetensors")
        state = {"optimizer": optimizer.state_dict(), "counters": dict(counters)}
        torch.save(state, temporary / "state.pt")
        shutil.copyfile(metrics, temporary / "metrics.jsonl")
        hashes = {name: sha256_file(temporary / name) for name in _FILES}
        manifest = {"step": step, "identity": identity_hash, "sha256": hashes}
        write_json(temporary / "manifest.json", manifest)
    rotate(folder)
    return path


def rotate(folder: Path, *, needed: Path | None = None) -> None:
    """Remove all but the newest :data:`KEPT` checkpoints.

    ``needed``: a checkpoint to keep, together with all newer ones, even if those are damaged.
    """
    found = _checkpoints(folder)
    kept = KEPT if needed is None else max(KEPT, found.index(needed) + 1)
    for old in found[kept:]:
        # if this process is killed before rmtree ends, remove_leftovers finds this name
        retired = old.with_name(f".{old.name}.old.tmp")
        old.replace(retired)
        shutil.rmtree(retired)


def _checkpoints(folder: Path) -> list[Path]:
    """Newest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None; its content is not checked."""
    return next(iter(_checkpoints(folder)), None)


def load_checkpoint(path: Path, *, identity_hash: str) -> Checkpoint:
    """Read a checkpoint; an InputError if a file is missing or damaged, or of another run."""
    manifest = read_json(path / "manifest.json")
    if manifest["identity"] != identity_hash:
        raise InputError(f"{path}: is of run {manifest['identity']}, not of run {identity_hash}")
    for name, digest in manifest["sha256"].items():
        if not (path / name).is_file():
            raise InputError(f"{path / name}: missing")
        if sha256_file(path / name) != digest:
            raise InputError(f"{path / name}: damaged (its hash is not the one in manifest.json)")
    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    return Checkpoint(
        path=path,
        step=manifest["step"],
        weights=load_file(path / "weights.safetensors"),
        optimizer=state["optimizer"],
        counters=state["counters"],
        metrics=path / "metrics.jsonl",
    )


def newest_intact(folder: Path, *, identity_hash: str) -> Checkpoint | None:
    """The newest checkpoint that can be read; None if there is no checkpoint.

    One line per damaged checkpoint is printed. If all are damaged, that is an InputError.
    """
    faults: list[str] = []
    for path in _checkpoints(folder):
        try:
            return load_checkpoint(path, identity_hash=identity_hash)
        except InputError as error:
            faults.append(str(error))
            print(f"{error}; trying the checkpoint before it", flush=True)
    if faults:
        raise InputError(
            f"{folder}: no checkpoint can be read ({'; '.join(faults)}); remove this folder to "
            "train from the start"
        )
    return None


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove the temporary files and directories that a killed process left in ``folder``.

    No other process may be writing there. ``of``: only leftovers of the file or directory ``of``.
    """
    pattern = f".{glob.escape(of)}.*.tmp" if of else ".*.tmp"
    for path in folder.glob(pattern) if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class RunFiles:
    """Paths in the directory of a run, which belongs to one identity.

    Attributes:
        identity: ``{hash, identity}``, everything that the weights depend on; written first.
        metrics: one JSON object per logged step.
        checkpoints: those of the run in progress.
        summary: of the finished run.
        weights: the trained weights; the run is complete when this file exists.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.identity = directory / "identity.json"
        self.metrics = directory / "metrics.jsonl"
        self.checkpoints = directory / "checkpoints"
        self.summary = directory / "training.json"
        self.weights = directory / "weights.safetensors"

    def begun(self, identity: Mapping[str, Any]) -> bool:
        """Whether the directory holds a checkpoint or the trained weights of this run."""
        return (
            self.identity.exists()
            and read_json(self.identity).get("hash") == hash_json(identity)
            and (self.weights.exists() or latest_checkpoint(self.checkpoints) is not None)
        )

    def prepare(self, identity: Mapping[str, Any]) -> None:
        """Make the directory ready for the run, and empty it if it holds another run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.directory)
        remove_leftovers(self.checkpoints)
        own = hash_json(identity)
        found = read_json(self.identity).get("hash") if self.identity.exists() else None
        if found != own:
            files = [self.weights, self.summary, self.metrics]
            if found or self.checkpoints.exists() or any(path.exists() for path in files):
                print(
                    f"{self.directory}: holds another run ({found or 'unknown'}, not {own}); "
                    "training starts over",
                    flush=True,
                )
            for path in files:
                path.unlink(missing_ok=True)
            if self.checkpoints.exists():
                shutil.rmtree(self.checkpoints)
            # last, so that a process killed before this line starts over again
            write_json(self.identity, {"hash": own, "identity": identity})


@dataclass(frozen=True, kw_only=True)
class WeightsMetadata:
    """What a file of trained weights says about them.

    Attributes:
        model_kwargs: JSON-able arguments of ``build_possam``, without ``seed``.
        identity: JSON-able; everything that the weights depend on.
        frozen: tower name -> hash.
        vocabulary: names of the classes trained on, so that a user of the file can tell seen
            classes from unseen ones; no tensor depends on it.
    """

    model_kwargs: Mapping[str, Any]
    identity: Mapping[str, Any]
    frozen: Mapping[str, str]
    vocabulary: Sequence[Sequence[str]]


def save_trained(path: Path, model: nn.Module, metadata: WeightsMetadata, *, step: int) -> None:
    """Write the state dict of ``model`` after ``step`` steps to a ``.safetensors`` file."""
    values = {
        "format": FORMAT,
        "identity": hash_json(metadata.identity),
        "frozen": dict(metadata.frozen),
        "model": dict(metadata.model_kwargs),
        "vocabulary": [list(names) for names in metadata.vocabulary],
        "step": step,
    }
    # one key only: the header keeps no order among several, and equal runs should give equal files
    text = json.dumps(values, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(_weights(model), temporary, metadata={METADATA_KEY: text})


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of trained weights: format, identity, frozen, model, vocabulary, step.

    A file that is missing, truncated, or of another kind is an InputError.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = (stream.metadata() or {}).get(METADATA_KEY)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a safetensors file, or truncated ({error}); train or fetch it again"
        ) from error
    values = json.loads(metadata) if metadata else {}
    if values.get("format") != FORMAT:
        raise InputError(
            f"{path}: these are not trained PosSAM weights (format {FORMAT} expected, "
            f"found {values.get('format')})"
        )
    return values


def load_trained(path: str | Path, *, frozen: Mapping[str, str]) -> PosSAM:
    """The model that a file of :func:`save_trained` describes, on the CPU in evaluation mode.

    ``frozen``: tower name -> hash of the towers that the model will be used with.

    Raises:
        InputError: missing, truncated or inconsistent file.
        WrongVariantError: trained over other towers; both hashes are named.
    """
    metadata = read_metadata(path)
    for tower in sorted({*frozen, *metadata["frozen"]}):
        trained, given = metadata["frozen"].get(tower), frozen.get(tower)
        if trained != given:
            raise WrongVariantError(
                f"{path}: trained over {tower} {trained}, but the {tower} given is {given}; use "
                "the towers that it was trained over"
            )
    model = rebuild_possam(metadata["model"], seed=0)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        raise InputError(
            f"{path}: the tensors are not those of the model that the file describes: "
            f"{' '.join(str(error).split())}"
        ) from error
    return model.eval()
