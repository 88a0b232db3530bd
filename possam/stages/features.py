"""Stage ``features``: runs a frozen tower once over a data set, for trainings with a cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from possam.datasets.format import ConvertedDataset
from possam.model.encoders.sam import SamEncoder
from possam.model.options import CLIP
from possam.params.layout import Layout
from possam.params.project import Project
from possam.stages.common import set_up_process, tower_hash
from possam.stages.models import load_clip_tower, load_sam_tower
from possam.training.feature_cache import cache_features


def cache_tower_features(project: Project, tower: str, dataset: str, split: str) -> None:
    """Cache the features of ``tower`` over one converted data set.

    Mirrored images are cached too if the scale's augmentation is ``flip``.

    Args:
        tower: a SAM size, or ``clip``. Of CLIP, all stages are cached: every model pools the last
            one, and FC-CLIP's backbone takes all of them.
    """
    set_up_process(project)
    layout = Layout(project)
    encoder = load_sam_tower(layout, tower) if tower != CLIP else load_clip_tower(layout)
    half = project.scale.towers.precision == "bf16"

    def encode(images: Tensor) -> Sequence[Tensor]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            if isinstance(encoder, SamEncoder):
                return (encoder(images),)
            return encoder.encode_stages(images)

    cache_features(
        encode=encode,
        dataset=ConvertedDataset.open(layout.dataset(dataset, split)),
        out=layout.features(tower, dataset, split),
        tower_hash=tower_hash(layout, tower),
        flipped=project.scale.training.augmentation.policy == "flip",
        batch_size=project.scale.evaluation.batch_size,
        workers=project.scale.training.workers,
    )
