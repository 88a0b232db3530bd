"""Numbers of parameters of a model (paper, Table 0.B.1), counted without allocating them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from possam.model.encoders.clip import FrozenClip, build_open_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
from possam.model.options import ModelOptions
from possam.model.possam import build_possam


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; ``frozen``: CLIP's image and text towers, SAM's image encoder."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.trainable + self.frozen


def count_parameters(
    *, sam_architecture: str | None, clip_config: Path | str, model: ModelOptions
) -> ParameterCount:
    """Count on the meta device: the networks are built, but their weights are never stored.

    Args:
        sam_architecture: a key of :data:`~possam.model.encoders.sam.ARCHITECTURES`; None without
            SAM (FC-CLIP).
        clip_config: an open_clip JSON file or the name of a built-in open_clip model.
        model: widths and choices of the trainable part.

    Raises:
        InputError: an unknown architecture, or a configuration that cannot be built.
    """
    with torch.device("meta"):
        network, tokenizer, size = build_open_clip(clip_config)
        clip = FrozenClip(model=network, tokenizer=tokenizer, image_size=size)
        channels, frozen = list(clip.stage_channels), _count(clip)
        if sam_architecture is not None:
            sam = SamEncoder(build_sam(find_architecture(sam_architecture)).image_encoder)
            channels, frozen = [sam.channels], frozen + _count(sam)
        possam = build_possam(
            model,
            backbone_channels=channels,
            clip_channels=clip.dense_channels,
            embed_dim=clip.embed_dim,
            logit_scale=1.0,  # an initial value; nothing is computed here
            seed=0,
        )
    return ParameterCount(trainable=_count(possam), frozen=frozen)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
