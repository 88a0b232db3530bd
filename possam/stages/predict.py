"""Stage ``predict``: any photograph, any words, any checkpoint."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.common import (
    check_device,
    clip_config,
    embed_names,
    frozen_hashes,
    load_towers,
    set_up_process,
    tower_widths,
)

if TYPE_CHECKING:
    from possam.model.encoders.text import TextEmbeddings
    from possam.model.options import Precision
    from possam.model.segmenter import Segmenter


def random_segmenter(
    project: Project, size: str, *, precision: "Precision | None" = None
) -> "Segmenter":
    """A model and towers with random weights, to try the command without any weights.

    Args:
        size: of the SAM.
        precision: of the towers, ``fp32`` or ``bf16``; default: the scale's.
    """
    import torch

    from possam.model.encoders.clip import load_clip
    from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
    from possam.model.possam import build_possam
    from possam.model.segmenter import Segmenter

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
) -> tuple["Segmenter", list[tuple[str, ...]]]:
    """A trained model with the towers that it was trained on, and its training vocabulary."""
    from possam.model.segmenter import Segmenter
    from possam.training.checkpoint import load_trained, read_metadata

    layout, scale = Layout(project), project.scale
    header = read_metadata(checkpoint)
    own_sam = header["frozen"].get("sam")
    for size in (None,) if own_sam is None else scale.towers.sam:
        frozen = frozen_hashes(layout, size)
        if frozen.get("sam") == own_sam:
            possam = load_trained(checkpoint, frozen=frozen)
            sam, clip = load_towers(layout, size)
            segmenter = Segmenter(
                sam=sam, clip=clip, possam=possam, precision=scale.towers.precision
            )
            return segmenter, [tuple(names) for names in header["vocabulary"]]
    raise InputError(
        f"{checkpoint}: was trained on a SAM (sha256 {own_sam[:12]}...) that is "
        f"not one of scale {project.name}'s; name the scale that it was trained at with --scale"
    )


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
    """Segment ``image`` into ``words``; write panoptic PNG, JSON and an overlay below ``out``."""
    from possam.model.encoders.text import embed_vocabulary
    from possam.reporting.photographs import parse_words, read_photograph, segment_photograph

    check_device(device)
    set_up_process(project)
    # Bad words or a bad photograph are reported before any weights are loaded.
    parse_words(words)
    read_photograph(image)
    vocabulary: list[tuple[str, ...]] = []
    embed: Callable[..., TextEmbeddings]
    if checkpoint is not None:
        segmenter, vocabulary = _trained_segmenter(project, checkpoint)
        embed = partial(embed_names, Layout(project))
    elif random_init and sam is not None:
        print(
            "possam predict: WARNING: random weights, towers included; the segments mean nothing",
            file=sys.stderr,
        )
        segmenter = random_segmenter(project, sam)
        embed = embed_vocabulary
    else:
        raise InputError("--random-init needs --sam: name the SAM size (b, l, h)")
    result = segment_photograph(
        image=image,
        words=words,
        stuff=stuff,
        segmenter=segmenter.to(device),
        embed=partial(embed, segmenter.clip, templates=project.scale.templates),
        training_vocabulary=vocabulary,
        inference=project.scale.inference,
        out=out,
    )
    for segment in result["segments_info"]:
        print(f"{segment['name']}: score {segment['score']:.3f}, {segment['area']} pixels")
    print(f"{len(result['segments_info'])} segments -> {out}")
