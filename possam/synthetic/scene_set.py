"""Scenes packed into tensors, rendered once for a training or a measurement."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from possam.synthetic.scenes import Scene, Split, render_scenes
from possam.synthetic.vocabulary import Domain


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """N scenes: ``images`` uint8 (N, 3, H, W), ``ids`` uint8 (N, H, W), ``classes`` int64 (N, M).

    ``classes[n, k]`` is the world class of segment ``k + 1`` of scene n, -1 beyond its last
    segment.
    """

    images: Tensor
    ids: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.images)


def pack_scenes(scenes: list[Scene]) -> SceneSet:
    """Stack scenes of equal size."""
    most = max(len(scene.segments) for scene in scenes)
    classes = torch.full((len(scenes), most), -1, dtype=torch.int64)
    for row, scene in zip(classes, scenes, strict=True):
        row[: len(scene.segments)] = torch.tensor([s.class_index for s in scene.segments])
    images = torch.from_numpy(np.stack([scene.image.transpose(2, 0, 1) for scene in scenes]))
    ids = torch.from_numpy(np.stack([scene.ids for scene in scenes]))
    return SceneSet(images=images, ids=ids, classes=classes)


def render_scene_set(count: int, *, domain: Domain, split: Split = "train", seed: int) -> SceneSet:
    """Render and pack ``count`` scenes (see :func:`possam.synthetic.scenes.render_scenes`)."""
    return pack_scenes(render_scenes(count, domain=domain, split=split, seed=seed))


def segment_masks(ids: Tensor, count: int) -> Tensor:
    """Binary masks of segments 1 to ``count``: ids (B, H, W) -> float (B, count, H, W)."""
    numbers = torch.arange(1, count + 1, dtype=ids.dtype, device=ids.device)
    return (ids[:, None] == numbers[:, None, None]).float()
