"""FC-CLIP (Yu et al. 2023): masks from CLIP's stages, and its in-vocabulary head.

Its ensemble is ``ensemble.geometric_ensemble``, its pooling of CLIP's map
``pooling.resized_masks``, and its mask filter ``inference.MaskScores.kept`` (``best_class``).

Shapes: B images, Q masks, C channels, E CLIP embedding, H W.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.layers import MLP, LayerNorm
from possam.model.ops.resampling import resample_area
from possam.model.options import ModelOptions
from possam.model.pooling import RegionPooling
from possam.model.pyramid import SCALES, Pyramid


class StagePyramid(Pyramid):
    """FC-CLIP's scales: the four stages of CLIP's ConvNeXt, each half as fine as the one before.

    Stages that keep the resolution (the synthetic CLIP has strides 4, 8, 8 and 8) are averaged down
    to their scale. Nothing is learned here: the pixel decoder projects and normalises each stage.
    """

    def __init__(self, *, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = tuple(channels)

    def forward(self, *maps: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H_i, W_i) -> the same at H, H / 2, H / 4, H / 8 (rounded up)."""
        height, width = maps[0].shape[-2:]
        sizes = [(-(-height // 2**index), -(-width // 2**index)) for index in range(SCALES)]
        return [resample_area(stage, size) for stage, size in zip(maps, sizes, strict=True)]


class FcclipHead(RegionPooling):
    """Pooled mask features, normalised and projected, plus the query, through an MLP of 3 layers.

    The decoder's own width is the only hidden one: at 256 channels and CLIP's 768 the head has
    395,264 parameters. CLIP's features take part at test time only, in the ensemble.
    """

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        width = region_channels // 2  # mask features and queries
        self.projection = nn.Sequential(LayerNorm(width), nn.Linear(width, width))
        self.mlp = MLP(width, width, embed_dim, layers=3)

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        pooled, queries = torch.chunk(region_tokens, 2, dim=-1)
        return F.normalize(self.mlp(self.projection(pooled) + queries).float(), dim=-1)
