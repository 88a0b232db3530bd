"""Stage ``features``: runs a frozen tower once over a data set, for trainings with a cache."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from possam.model.options import CLIP
from possam.params.layout import Layout
from possam.params.project import Project
from possam.stages.common import (
    load_clip_tower,
    load_sam_tower,
    set_up_process,
    tower_hash,
)

if TYPE_CHECKING:
    from torch import Tensor


def _encoder(layout: Layout, tower: str) -> "Callable[[Tensor], Sequence[Tensor]]":
    if tower == CLIP:
        return load_clip_tower(layout).encode_stages
    sam = load_sam_tower(layout, tower)
    return lambda images: (sam(images),)


def cache_tower_features(project: Project, tower: str, dataset: str, split: str) -> None:
    """Cache the features of ``tower`` over one converted data set.

    Mirrored images are cached too if the scale's augmentation is ``flip``.

    Args:
        tower: a SAM size, or ``clip``, of which all stages are cached: every model pools the last
            one, and FC-CLIP's backbone takes all of them.
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
