"""What a training step consumes: features of the frozen towers and the segments to find."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Target:
    """Segments of one image.

    Attributes:
        masks: (N, H, W) bool, over exactly the area that the features cover; N may be 0.
        labels: (N,) int64 in 0..K-1.
    """

    masks: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Target":
        """The same target on ``device``."""
        return Target(masks=send(self.masks, device), labels=send(self.labels, device))


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        backbone: float32 maps that masks are made from, finest first: SAM's one (B, Cs, h, w), or
            the stages of CLIP.
        clip_features: (B, Cc, h', w') float32, CLIP's dense map of the same area.
        targets: one per image; all masks have the same H x W.
        indices: positions of the images in the data set.
    """

    backbone: tuple[Tensor, ...]
    clip_features: Tensor
    targets: list[Target]
    indices: list[int] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        return Batch(
            backbone=tuple(send(level, device) for level in self.backbone),
            clip_features=send(self.clip_features, device),
            targets=[target.to(device) for target in self.targets],
            indices=self.indices,
        )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``. The host does not wait for a copy from pinned memory to a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def target_from_ids(ids: np.ndarray, segments: Sequence[tuple[int, int]]) -> Target:
    """Masks of the segments of an id map (H, W); segments without pixels are dropped.

    ``segments``: (id, category) pairs, without crowds (no training targets, as in Mask2Former);
    other ids are void.
    """
    names = np.asarray([identity for identity, _ in segments], dtype=ids.dtype)
    masks = torch.from_numpy(ids[None] == names[:, None, None])
    labels = torch.tensor([category for _, category in segments], dtype=torch.int64)
    present = masks.flatten(1).any(1)
    return Target(masks=masks[present], labels=labels[present])


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts`` and their order.

    Every random number of training comes from such a seed of (purpose, run seed, micro-batch or
    sample), so a resumed run needs no stored generator state.
    """
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
