"""Stage ``features``: frozen towers run once over a data set, for trainings that allow a cache."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from possam.layout import Layout
from possam.params import CLIP, CLIP_STAGES, Project
from possam.stages.common import (
    load_clip_tower,
    load_sam_tower,
    set_up_process,
    tower_hash,
)

if TYPE_CHECKING:
    from torch import Tensor


def _encoder(layout: Layout, tower: str) -> "Callable[[Tensor], Sequence[Tensor]]":
    if tower not in (CLIP, CLIP_STAGES):
        sam = load_sam_tower(layout, tower)
        return lambda images: (sam(images),)
    clip = load_clip_tower(layout)
    if tower == CLIP:
        return lambda images: (clip.encode_dense(images),)
    return lambda images: clip.encode_stages(images)[:-1]


def cache_tower_features(project: Project, tower: str, dataset: str, split: str) -> None:
    """Cache the features of ``tower`` over one converted data set.

    ``tower``: a SAM size, ``clip`` (its last stage), or ``clip_stages`` (those before the last).
    Mirrored images are cached too if the scale's augmentation is ``flip``.
    """
    import torch

    from possam.datasets.format import ConvertedDataset
    from possam.training.feature_cache import cache_features

    set_up_process(project)
    layout = Layout(project)
    encode = _encoder(layout, tower)
    half = project.scale.towers.precision == "bf16"

    def encode_in_precision(images: "Tensor") -> "Sequence[Tensor]":
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return encode(images)

    cache_features(
        encode=encode_in_precision,
        dataset=ConvertedDataset.open(layout.dataset(dataset, split)),
        out=layout.features(tower, dataset, split),
        tower_hash=tower_hash(layout, tower),
        flipped=project.scale.training.augmentation.policy == "flip",
        batch_size=project.scale.evaluation.batch_size,
        workers=project.scale.training.workers,
    )
