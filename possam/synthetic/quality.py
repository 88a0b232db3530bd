"""Quality of the small towers, measured on scenes that they were not trained on."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from segment_anything.modeling import Sam
from torch import Tensor

from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.sam import SamEncoder
from possam.synthetic.pretrain_clip import pool_regions
from possam.synthetic.pretrain_sam import decode_clicks, mask_iou
from possam.synthetic.scene_set import SceneSet, render_scene_set, segment_masks
from possam.synthetic.vocabulary import (
    CLASSES,
    TEMPLATES,
    WorldClass,
    domain_classes,
    domain_names,
    seen_in_training,
)

QUALITY_SEED = 2
"""Seed of the scenes that the figures are measured on; trainings use another split as well."""
_BATCH = 25
_VILD_TEMPLATES = TEMPLATES[:14]


def class_scores(clip: FrozenClip, embeddings: Tensor, names: list[tuple[str, ...]]) -> Tensor:
    """Cosine of embeddings (N, E) with each class, (N, K): mean of templates, best of names."""
    texts = [t.format(name) for group in names for name in group for t in _VILD_TEMPLATES]
    text = clip.encode_text(texts).unflatten(0, (-1, len(_VILD_TEMPLATES))).mean(1)
    scores = F.normalize(embeddings, dim=-1) @ F.normalize(text, dim=-1).T
    parts = scores.split([len(group) for group in names], dim=1)
    return torch.stack([part.max(1).values for part in parts], dim=1)


@torch.no_grad()
def region_embeddings(clip: FrozenClip, scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """CLIP embeddings (N, E) of all segments, pooled in their true masks, and classes (N,)."""
    found = []
    for start in range(0, len(scenes), _BATCH):
        rows = slice(start, start + _BATCH)
        features = clip.encode_dense(scenes.images[rows].float())
        masks = segment_masks(scenes.ids[rows], scenes.classes.shape[1])
        found.append(clip.project(pool_regions(features, masks))[scenes.classes[rows] >= 0])
    return torch.cat(found), scenes.classes[scenes.classes >= 0]


def clip_accuracy(
    clip: FrozenClip, *, domain: Literal["a", "b", "held"], scenes: int
) -> dict[str, float]:
    """Share of segments whose best class, over all classes of ``domain``, is the right one.

    Returns ``things_seen``, ``things_unseen`` (by PosSAM, which trains on domain A) and ``stuff``;
    for "held", whose vocabulary is the whole world's and whose things CLIP has never seen:
    ``things`` and ``stuff``.
    """
    vocabulary: tuple[WorldClass, ...] = CLASSES if domain == "held" else domain_classes(domain)
    names = [c.names if domain == "held" else domain_names(domain, c) for c in vocabulary]
    data = render_scene_set(scenes, domain=domain, split="val", seed=QUALITY_SEED)
    embeddings, classes = region_embeddings(clip, data)
    best = class_scores(clip, embeddings, names).argmax(1)
    position = {c.index: k for k, c in enumerate(vocabulary)}
    right: dict[str, list[bool]] = {}
    for index, guess in zip(classes.tolist(), best.tolist(), strict=True):
        group = "stuff"
        if CLASSES[index].is_thing:
            seen = "_seen" if seen_in_training(CLASSES[index]) else "_unseen"
            group = "things" if domain == "held" else f"things{seen}"
        right.setdefault(group, []).append(guess == position[index])
    return {group: float(np.mean(hits)) for group, hits in sorted(right.items())}


def inner_click(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a boolean mask that is farthest from its boundary; the image's edge is
    boundary too.
    """
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(x), int(y)


@torch.no_grad()
def sam_click_iou(sam: Sam, *, domain: Literal["a", "b", "held"], scenes: int) -> dict[str, float]:
    """IoU of masks from one inner click on each segment, at the images' resolution.

    Returns ``chosen`` (the mask that the IoU head prefers), ``oracle`` (the best of the three),
    ``things`` and ``stuff`` (parts of ``chosen``) and ``head_error`` (mean error of the predicted
    IoU).
    """
    encoder = SamEncoder(sam.image_encoder)
    data = render_scene_set(scenes, domain=domain, split="val", seed=QUALITY_SEED)
    chosen, oracle, error, is_thing = [], [], [], []
    for start in range(0, len(data), _BATCH):
        rows = slice(start, start + _BATCH)
        present = data.classes[rows] >= 0
        masks = segment_masks(data.ids[rows], present.shape[1])[present] > 0
        clicks = torch.tensor([inner_click(mask) for mask in masks.numpy()], dtype=torch.float32)
        embeddings = encoder(data.images[rows].float())[present.nonzero()[:, 0]]
        logits, predicted = decode_clicks(sam, embeddings, clicks)
        logits = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
        iou = mask_iou(logits > 0, masks[:, None])
        best = predicted.argmax(1, keepdim=True)
        chosen.append(iou.gather(1, best)[:, 0])
        oracle.append(iou.max(1).values)
        error.append((predicted - iou).abs().mean(1))
        is_thing.append(data.classes[rows][present] < sum(c.is_thing for c in CLASSES))
    picked, things = torch.cat(chosen), torch.cat(is_thing)
    return {
        "chosen": float(picked.mean()),
        "oracle": float(torch.cat(oracle).mean()),
        "things": float(picked[things].mean()),
        "stuff": float(picked[~things].mean()),
        "head_error": float(torch.cat(error).mean()),
    }
