"""What a model needs to know of its towers before they have weights."""

from typing import Any

from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.sam import SamEncoder


def tower_widths(*, sam: SamEncoder | None, clip: FrozenClip) -> dict[str, Any]:
    """The arguments of ``build_possam`` that depend on the towers."""
    return {
        "backbone_channels": list(clip.stage_channels) if sam is None else [sam.channels],
        "clip_channels": clip.dense_channels,
        "embed_dim": clip.embed_dim,
    }
