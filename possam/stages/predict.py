"""Stage ``predict``: any photograph, any words, any checkpoint."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from possam.evaluation.words import cut_names
from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
from possam.model.encoders.text import TextEmbeddings, embed_vocabulary
from possam.model.options import Precision
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.photographs import (
    load_photograph,
    parse_words,
    repeated_names,
    segment_photograph,
)
from possam.runtime.errors import InputError
from possam.stages.common import check_device, clip_config, frozen_hashes, set_up_process
from possam.stages.models import embed_names, load_segmenter, tower_widths
from possam.training.checkpoint import read_metadata


def random_segmenter(
    project: Project, size: str, *, precision: Precision | None = None
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
        clip = load_clip(config=clip_config(Layout(project)), checkpoint=None, random_init=True)
    possam = build_possam(scale.model, **tower_widths(sam=sam, clip=clip), seed=seed)
    return Segmenter(
        sam=sam, clip=clip, possam=possam, precision=precision or scale.towers.precision
    )


def _trained_segmenter(
    project: Project, checkpoint: Path
) -> tuple[Segmenter, list[tuple[str, ...]]]:
    """A trained model with the towers that it was trained on, and its training vocabulary."""
    layout, header = Layout(project), read_metadata(checkpoint)
    own_sam = header["frozen"].get("sam")
    for size in (None,) if own_sam is None else project.scale.towers.sam:
        if frozen_hashes(layout, size).get("sam") == own_sam:
            vocabulary = [tuple(names) for names in header["vocabulary"]]
            return load_segmenter(layout, size, checkpoint), vocabulary
    raise InputError(
        f"{checkpoint}: was trained on a SAM (sha256 {own_sam[:12]}...) that is "
        f"not one of scale {project.name}'s; name the scale that it was trained at with --scale"
    )


def _warn(message: str) -> None:
    print(f"possam predict: WARNING: {message}", file=sys.stderr)


def _some(items: list[str]) -> str:
    """The first five of ``items``, and how many there are beside."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more


def predict(
    project: Project,
    *,
    image: Path,
    words: str,
    stuff: str,
    checkpoint: Path | None,
    random_init: bool,
    sam: str | None,
    out: Path,
    device: str,
) -> None:
    """Segment ``image`` into ``words``; write panoptic PNG, JSON and an overlay into ``out``."""
    if random_init == (checkpoint is not None):
        raise InputError("give one of --checkpoint and --random-init")
    check_device(device)
    set_up_process(project)
    scale = project.scale
    # Bad words or a bad photograph are reported before any weights are loaded.
    classes = parse_words(words)
    load_photograph(image, most=scale.predict.mask_pixels)
    vocabulary: list[tuple[str, ...]] = []
    embed: Callable[..., TextEmbeddings] = embed_vocabulary
    if checkpoint is not None:
        segmenter, vocabulary = _trained_segmenter(project, checkpoint)
        embed = partial(embed_names, Layout(project))
    elif random_init and sam is not None:
        _warn("random weights, towers included; the segments mean nothing")
        segmenter = random_segmenter(project, sam)
    else:
        raise InputError("--random-init needs --sam: name the SAM size (b, l, h)")
    if repeated := repeated_names(classes):
        _warn(
            f"--words: {_some(repeated)}: in several classes; the first of them gets its segments"
        )
    if cut := cut_names(classes, scale.templates, segmenter.clip.tokenizer):
        ends = _some([f"{name!r} loses {end!r}" for name, end in cut.items()])
        _warn(
            f"--words: too long for CLIP, which reads {segmenter.clip.tokenizer.context_length} "
            f"tokens, and cut: {ends}; names that begin alike are then one"
        )
    result = segment_photograph(
        image=image,
        words=words,
        stuff=stuff,
        segmenter=segmenter.to(device),
        embed=partial(embed, segmenter.clip, templates=scale.templates),
        training_vocabulary=vocabulary,
        inference=scale.inference,
        resolution=scale.predict.resolution,
        mask_pixels=scale.predict.mask_pixels,
        out=out,
    )
    for segment in result["segments_info"]:
        print(f"{segment['name']}: score {segment['score']:.3f}, {segment['area']} pixels")
    print(f"{len(result['segments_info'])} segments -> {out}")
