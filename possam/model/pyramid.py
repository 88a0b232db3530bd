"""Four scales for the pixel decoder, from SAM's one map (paper, section 3.3: "FPN").

Shapes: B images, C channels, H W (of SAM's map, stride 16 at patch size 16).
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.layers import LayerNorm2d

SCALES = 4


class Pyramid(nn.Module):
    """Interface of ``registry.PYRAMIDS``, built with the ``channels`` of the backbone's maps.

    The four maps get ``out_channels`` channels, unless a pyramid keeps the backbone's.
    """

    out_channels: tuple[int, ...]

    def forward(self, *maps: Tensor) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i), finest first -> four maps, each half as fine as the previous."""
        raise NotImplementedError


class SimplePyramid(Pyramid):
    """Convolutions and deconvolutions to 1/4, 1/8, 1/16 and 1/32, as ViTDet's simple pyramid.

    Where ViTDet pools to 1/32 there is a strided convolution, since the paper names only
    convolutions and deconvolutions.
    """

    def __init__(self, *, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = (out_channels,) * SCALES
        (full,) = channels
        half, quarter = full // 2, full // 4
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(full, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(full, half, 2, stride=2)
        self.down2 = nn.Conv2d(full, full, 3, stride=2, padding=1)
        self.out = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for width in (quarter, half, full, full)
        )

    def forward(self, *maps: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> four maps of out_channels, finest first: 4H, 2H, H, ceil(H / 2)."""
        (features,) = maps
        scales = (self.up4(features), self.up2(features), features, self.down2(features))
        return [out(level) for out, level in zip(self.out, scales, strict=True)]


class ResampledPyramid(Pyramid):
    """Table 4's "no FPN": the single map resampled to the same scales, each projected by 1 x 1."""

    def __init__(self, *, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.out_channels = (out_channels,) * SCALES
        (full,) = channels
        self.out = nn.ModuleList(nn.Conv2d(full, out_channels, 1) for _ in range(SCALES))

    def forward(self, *maps: Tensor) -> list[Tensor]:
        (features,) = maps
        # A 1 x 1 convolution and a resampling commute, so each runs on the smaller map.
        fine = [
            F.interpolate(out(features), scale_factor=factor, mode="bilinear", align_corners=False)
            for out, factor in zip(self.out[:2], (4, 2), strict=True)
        ]
        height, width = features.shape[-2:]
        coarse = ((height + 1) // 2, (width + 1) // 2)
        halved = F.interpolate(features, size=coarse, mode="area")
        return [*fine, self.out[2](features), self.out[3](halved)]
