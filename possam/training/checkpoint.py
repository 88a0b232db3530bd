"""Checkpoints of a run, and the file of its trained weights.

A checkpoint is a directory ``step_<finished steps>`` that gets its name when it is complete, with
the hashes of its files in ``manifest.json``. Only tensors and plain values are unpickled.
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from possam.datasets.json_fields import (
    ID,
    LIST,
    OBJECT,
    TEXT,
    Field,
    check_fields,
    is_text,
    optional,
    shown,
)
from possam.model.options import ModelOptions
from possam.model.possam import PosSAM, rebuild_possam
from possam.runtime.errors import InputError, NotPermittedError, WrongVariantError
from possam.runtime.files import (
    atomic_directory,
    atomic_path,
    hash_json,
    read_json,
    sha256_file,
    write_json,
)
from possam.runtime.json_text import parse_json
from possam.runtime.options import Positive
from possam.runtime.reading import check_readable, reading
from possam.training.checkpoint_paths import checkpoint_path, checkpoints

FORMAT = "possam-weights-3"
METADATA_KEY = "possam"
KEPT = 2
"""Checkpoints kept per run: the newest, and the one before, in case the newest is damaged."""

_METADATA = {
    "identity": TEXT,
    "accepted_code": optional(LIST),
    "frozen": OBJECT,
    "model": OBJECT,
    "vocabulary": Field(
        lambda v: (
            type(v) is list
            and all(type(names) is list and names and all(map(is_text, names)) for names in v)
        ),
        "a list of lists of names",
    ),
    "step": ID,
}
_FILES = ("weights.safetensors", "state.pt", "metrics.jsonl")


class _Description(ModelOptions):
    """The arguments of ``build_possam`` that are stored with weights."""

    backbone_channels: tuple[Positive, ...]
    clip_channels: Positive
    embed_dim: Positive


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
        with atomic_path(temporary / "weights.safetensors") as staged:
            save_file(_weights(model), staged)
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
    found = checkpoints(folder)
    kept = KEPT if needed is None else max(KEPT, found.index(needed) + 1)
    for old in found[kept:]:
        # if this process is killed before rmtree ends, remove_leftovers finds this name
        retired = old.with_name(f".{old.name}.old.tmp")
        old.replace(retired)
        shutil.rmtree(retired)


def load_checkpoint(path: Path, *, identities: Collection[str]) -> Checkpoint:
    """Read a checkpoint; an InputError if a file is missing or damaged, or of another run.

    ``identities``: hashes of the run's identity, and of those that it was accepted from.
    """
    manifest = read_json(path / "manifest.json")
    if manifest["identity"] not in identities:
        own = " or ".join(identities)
        raise InputError(f"{path}: is of run {manifest['identity']}, not of run {own}")
    for name, digest in manifest["sha256"].items():
        with reading(path / name):
            found = sha256_file(path / name)
        if found != digest:
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


def newest_intact(folder: Path, *, identities: Collection[str]) -> Checkpoint | None:
    """The newest checkpoint of :func:`load_checkpoint`; None if there is no checkpoint.

    One line per damaged checkpoint is printed. If all are damaged, that is an InputError; one that
    this user may not read is a NotPermittedError.
    """
    faults: list[str] = []
    for path in checkpoints(folder):
        try:
            return load_checkpoint(path, identities=identities)
        except NotPermittedError:
            raise
        except InputError as error:
            faults.append(str(error))
            print(f"{error}; trying the checkpoint before it", flush=True)
    if faults:
        raise InputError(
            f"{folder}: no checkpoint can be read ({'; '.join(faults)}); remove this folder to "
            "train from the start"
        )
    return None


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


def save_trained(
    path: Path,
    model: nn.Module,
    metadata: WeightsMetadata,
    *,
    step: int,
    accepted: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the state dict of ``model`` after ``step`` steps to a ``.safetensors`` file.

    ``accepted``: changes of the code on the way (:class:`possam.training.run_files.RunFiles`).
    """
    values = {
        "format": FORMAT,
        "identity": hash_json(metadata.identity),
        "accepted_code": list(accepted),
        "frozen": dict(metadata.frozen),
        "model": dict(metadata.model_kwargs),
        "vocabulary": [list(names) for names in metadata.vocabulary],
        "step": step,
    }
    _save(path, _weights(model), values)


def _save(path: Path, tensors: dict[str, Tensor], values: Mapping[str, Any]) -> None:
    # one key only: the header keeps no order among several, and equal runs should give equal files
    text = json.dumps(values, sort_keys=True)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: text})


def accept_weights(path: Path, identity: str, accepted: Sequence[Mapping[str, Any]]) -> None:
    """Write ``identity`` (its hash) and ``accepted`` into trained weights; the tensors stay."""
    values = {"identity": identity, "accepted_code": list(accepted)}
    _save(path, load_file(path), read_metadata(path) | values)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Metadata of trained weights: format, identity, accepted_code, frozen, model, ...

    A file that is missing, may not be read, is truncated or of another kind is an InputError.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = (stream.metadata() or {}).get(METADATA_KEY)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a safetensors file, or truncated ({error}); train or fetch it again"
        ) from error
    try:
        values = parse_json(metadata or "{}")
    except ValueError as error:
        raise InputError(
            f"{path}: the description in its header is damaged ({error}); train or fetch it again"
        ) from error
    found = values.get("format") if isinstance(values, dict) else values
    if found != FORMAT:
        raise InputError(
            f"{path}: these are not trained PosSAM weights (format {FORMAT} expected, "
            f"found {shown(found)})"
        )
    where, remedy = f"{path}: header", "train or fetch it again"
    check_fields(values, _METADATA, where, remedy=remedy)
    check_fields(
        values["frozen"], dict.fromkeys(values["frozen"], TEXT), f"{where}: frozen", remedy=remedy
    )
    return dict(values)


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
    _check_description(path, metadata["model"])
    model = rebuild_possam(metadata["model"], seed=0)
    tensors = load_file(path)
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise InputError(f"{path}: {name}: a number is not finite; train or fetch it again")
    model.load_state_dict(tensors)
    return model.eval()


def _check_description(path: str | Path, description: Mapping[str, Any]) -> None:
    """Raise an InputError unless a file holds the tensors of the model that it describes.

    The model is built without memory for its tensors, whose sizes are not known to be sound.
    """
    with safe_open(path, framework="pt") as stream:
        slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
        found = {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    try:
        options = _Description.model_validate_json(json.dumps(description))
        if options.decoder_layers + options.pixel_encoder_layers > len(found):
            raise ValueError("there are fewer tensors than layers")
        with torch.device("meta"):
            model = rebuild_possam(description, seed=0)
    except (InputError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{path}: header: model: no such model can be built ({' '.join(str(error).split())}); "
            "train or fetch it again"
        ) from error
    needed = {name: (list(value.shape), "F32") for name, value in model.state_dict().items()}
    for name in sorted(needed.keys() | found.keys()):
        if found.get(name) != needed.get(name):
            raise InputError(
                f"{path}: the tensors are not those of the model that the file describes: {name} "
                f"is {found.get(name, 'missing')}, not {needed.get(name, 'of the model')}; train "
                "or fetch it again"
            )
