"""Stage ``features``: frozen towers run once over a data set, for trainings that allow a cache."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from possam.layout import Layout
from possam.params import Project
from possam.stages.common import (
    load_clip_tower,
    load_sam_tower,
    tower_hash,
    use_threads,
)

if TYPE_CHECKING:
    from torch import Tensor


def cache_tower_features(project: Project, tower: str, dataset: str, split: str) -> None:
    """Cache the features of ``tower`` (``clip`` or a SAM size) over one converted data set.

    Mirrored images are cached too if the scale's augmentation is ``flip``.
    """
    import torch

    from possam.datasets.format import ConvertedDataset
    from possam.training.feature_cache import cache_features

    use_threads(project)
    layout = Layout(project)
    encode: Callable[[Tensor], Tensor]
    if tower == "clip":
        encode = load_clip_tower(layout).encode_dense
    else:
        encode = load_sam_tower(layout, tower)
    half = project.scale.towers.precision == "bf16"

    def encode_in_precision(images: "Tensor") -> "Tensor":
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
