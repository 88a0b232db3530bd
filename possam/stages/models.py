"""Models of a scale: frozen towers, trained runs, and names that are embedded once.

Text embeddings lie on disk under the hash of what they are made from: encoder, names, templates. A
file holds one vocabulary: ``names``, (N, E) float32. Files are never changed, only added.
"""

import hashlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from segment_anything.modeling import Sam
from torch import Tensor

from possam.model.encoders.clip import FrozenClip, load_clip
from possam.model.encoders.sam import SamEncoder, load_sam
from possam.model.encoders.text import TextEmbeddings, TextEncoder, embed_vocabulary, of_names
from possam.model.options import CLIP
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.params.layout import Layout
from possam.params.scale import RunParams
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, hash_json
from possam.runtime.progress import Progress
from possam.runtime.provenance import package_versions
from possam.runtime.reading import check_readable
from possam.stages.common import (
    asset_file,
    asset_record,
    clip_config,
    code_identity,
    frozen_hashes,
    tower_hash,
)
from possam.training.checkpoint import load_trained

_TEXT_CODE = ("possam.model.encoders.clip", "possam.model.encoders.text")
"""Entry modules of the code that turns class names into embeddings."""

_TEXT_FORMAT = "possam-text-1"


def load_whole_sam(layout: Layout, size: str) -> Sam:
    """The whole SAM of ``size``, mask decoder included; InputError if the scale has none."""
    towers = layout.project.scale.towers
    if size not in towers.sam:
        raise InputError(f"SAM size {size!r} is unknown; valid choices: {', '.join(towers.sam)}")
    tower = towers.sam[size]
    return load_sam(asset_file(layout, tower.asset), architecture=tower.architecture)


def load_sam_tower(layout: Layout, size: str) -> SamEncoder:
    """The frozen SAM image encoder of ``size``."""
    return SamEncoder(load_whole_sam(layout, size).image_encoder)


def load_clip_tower(layout: Layout) -> FrozenClip:
    """The frozen CLIP."""
    clip = layout.project.scale.towers.clip
    checkpoint = asset_file(layout, clip.asset) if clip.asset else None
    return load_clip(config=clip_config(layout), checkpoint=checkpoint)


def load_towers(layout: Layout, sam: str | None) -> tuple[SamEncoder | None, FrozenClip]:
    """The frozen towers: SAM of size ``sam`` (None: no SAM) and CLIP."""
    return None if sam is None else load_sam_tower(layout, sam), load_clip_tower(layout)


def embed_names(
    layout: Layout,
    clip: FrozenClip,
    vocabulary: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
) -> TextEmbeddings:
    """Text embeddings of the scale's CLIP, on the CPU; read from disk if they are there.

    Args:
        clip: the CLIP of :func:`load_clip_tower`, on any device.
        vocabulary: synonyms of each class.
        templates: sentences with one ``{}`` for the name.

    Raises:
        InputError: an empty or blank vocabulary, a bad template, a damaged file of embeddings.
    """
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


def tower_widths(*, sam: SamEncoder | None, clip: FrozenClip) -> dict[str, Any]:
    """The arguments of ``build_possam`` that depend on the towers."""
    return {
        "backbone_channels": list(clip.stage_channels) if sam is None else [sam.channels],
        "clip_channels": clip.dense_channels,
        "embed_dim": clip.embed_dim,
    }


def load_segmenter(layout: Layout, sam: str | None, weights: Path | RunParams) -> Segmenter:
    """The frozen towers around the trainable part, on the CPU.

    Args:
        sam: a SAM size; None: no SAM.
        weights: ``weights.safetensors`` of a training on these towers; or a run, for the weights
            that its training begins with.

    Raises:
        InputError: the weights were trained on other towers.
    """
    tower, clip = load_towers(layout, sam)
    if isinstance(weights, Path):
        possam = load_trained(weights, frozen=frozen_hashes(layout, sam))
    else:
        widths = tower_widths(sam=tower, clip=clip)
        possam = build_possam(weights.model, **widths, seed=weights.seed)
    precision = layout.project.scale.towers.precision
    return Segmenter(sam=tower, clip=clip, possam=possam, precision=precision)


def embed_cached(
    clip: TextEncoder,
    vocabulary: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    encoder: Mapping[str, Any],
    folder: Path,
) -> TextEmbeddings:
    """Call ``embed_vocabulary``, or read what an earlier call has left in ``folder``.

    The embeddings are on the CPU, and the same numbers whether computed or read.

    Args:
        encoder: what ``clip``'s embeddings depend on besides the sentences, as JSON.
        folder: of the files; made if missing, left alone if it may not be written.

    Raises:
        InputError: a damaged file, or input that ``embed_vocabulary`` refuses.
    """
    content = {
        "format": _TEXT_FORMAT,
        "encoder": dict(encoder),
        "vocabulary": [list(synonyms) for synonyms in vocabulary],
        "templates": list(templates),
    }
    path = folder / f"{hash_json(content)}.safetensors"
    count = sum(map(len, vocabulary))
    if path.is_file():
        return of_names(_read(path, count), vocabulary)
    sentences, label = count * len(templates), f"embed {count} names of classes"
    with Progress(sentences, label=label, unit="sentences") as progress:
        text = embed_vocabulary(clip, vocabulary, templates=templates, report=progress.update)
    names = text.names.cpu().contiguous()
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if os.access(existing, os.W_OK):
        with atomic_path(path) as temporary:
            save_file({"names": names}, temporary, metadata={"sha256": _digest(names)})
    else:
        reason = f"{folder}: may not be written: the next call embeds these names again"
        print(reason, file=sys.stderr, flush=True)
    return of_names(names, vocabulary)


def _read(path: Path, count: int) -> Tensor:
    """The embeddings of ``count`` names in a file."""
    check_readable(path)
    try:
        names = load_file(path)["names"]
        with safetensors.safe_open(path, framework="pt") as file:
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and run again") from error
    if names.dim() != 2 or len(names) != count or _digest(names) != digest:
        raise InputError(f"{path}: damaged (not what was written); delete it and run again")
    return names


def _digest(names: Tensor) -> str:
    return hashlib.sha256(names.numpy().tobytes()).hexdigest()
