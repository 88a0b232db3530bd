"""Models of a scale: frozen towers, trained runs, and names that are embedded once.

Text embeddings lie on disk under the hash of what they are made from: encoder, names, templates. A
file holds one vocabulary: ``names``, (N, E) float32. Files are never changed, only added.
"""

from collections.abc import Sequence
from pathlib import Path

from segment_anything.modeling import Sam

from possam.model.encoders.clip import FrozenClip, load_clip
from possam.model.encoders.sam import SamEncoder, load_sam
from possam.model.encoders.text import TextEmbeddings
from possam.model.encoders.widths import tower_widths
from possam.model.options import CLIP
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.params.layout import Layout
from possam.params.scale import RunParams
from possam.pictures.text_cache import embed_cached
from possam.runtime.errors import InputError
from possam.runtime.provenance import package_versions
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
