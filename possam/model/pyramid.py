"""Four scales for the pixel decoder: from SAM's one map (paper, section 3.3: "FPN"), or CLIP's.

Shapes: B images, C channels, H W (of SAM's map, stride 16 at patch size 16).
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.norms import LayerNorm2d
from possam.runtime.errors import InputError

PyramidName = Literal["fpn", "resample", "stages"]
SCALES = 4


class Pyramid(nn.Module):
    """Interface: the backbone's maps -> four maps, finest first.

    Attributes:
        out_channels: of the four maps.
    """

    out_channels: tuple[int, ...]


class SimplePyramid(Pyramid):
    """Convolutions and deconvolutions to 1/4, 1/8, 1/16 and 1/32, as ViTDet's simple pyramid.

    ViTDet halves the channels with each deconvolution and gives each scale a 1 x 1 and a 3 x 3
    convolution with layer norms; so does this. Its max-pooling to 1/32 is a strided convolution
    here, since the paper names convolutions and deconvolutions only.
    """

    def __init__(self, *, channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = (out_channels,) * SCALES
        half, quarter = channels // 2, channels // 4
        self.up4 = nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            LayerNorm2d(half),
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        )
        self.up2 = nn.ConvTranspose2d(channels, half, 2, stride=2)
        self.down2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.out = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for width in (quarter, half, channels, channels)
        )

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> four maps of out_channels, finest first: 4H, 2H, H, ceil(H / 2)."""
        maps = (self.up4(features), self.up2(features), features, self.down2(features))
        return [out(level) for out, level in zip(self.out, maps, strict=True)]


class ResampledPyramid(Pyramid):
    """Table 4's "no FPN": the single map resampled to four scales, each with a 1 x 1 projection."""

    def __init__(self, *, channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = (out_channels,) * SCALES
        self.out = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for _ in range(SCALES))

    def forward(self, features: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> four maps of out_channels, finest first: 4H, 2H, H, ceil(H / 2)."""
        height, width = features.shape[-2:]
        maps = [
            F.interpolate(
                out(features), size=(height * up, width * up), mode="bilinear", align_corners=False
            )
            for out, up in zip(self.out[:2], (4, 2), strict=True)
        ]
        coarse = ((height + 1) // 2, (width + 1) // 2)
        maps.append(self.out[2](features))
        # A 1 x 1 convolution and a resampling commute, so each runs on the smaller map.
        maps.append(self.out[3](F.interpolate(features, size=coarse, mode="area")))
        return maps


class StagePyramid(Pyramid):
    """FC-CLIP's scales: the four stages of CLIP's ConvNeXt, each half as fine as the one before.

    Stages that halve the resolution are taken as they are; those that keep it (the synthetic CLIP
    has strides 4, 8, 8 and 8) are averaged down to the scale that is their turn. Nothing is learned
    here: the pixel decoder projects and normalises each stage.
    """

    def __init__(self, *, channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = tuple(channels)

    def forward(self, *stages: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H_i, W_i) -> the same of H, H / 2, H / 4, H / 8 (rounded up)."""
        height, width = stages[0].shape[-2:]
        maps = []
        for index, stage in enumerate(stages):
            size = (-(-height // 2**index), -(-width // 2**index))
            same = stage.shape[-2:] == size
            maps.append(stage if same else F.interpolate(stage, size=size, mode="area"))
        return maps


def build_pyramid(
    name: PyramidName | None, *, channels: Sequence[int], out_channels: int
) -> Pyramid:
    """The pyramid called ``name`` over maps of ``channels``.

    ``out_channels`` concerns those over SAM's one map. No pyramid (``None``) is an
    :class:`InputError`: without one there is no pixel decoder.
    """
    if name is None:
        raise InputError("model.pyramid: null: the pixel decoder needs four scales; name a pyramid")
    if name == "stages":
        return StagePyramid(channels=channels)
    kind = SimplePyramid if name == "fpn" else ResampledPyramid
    return kind(channels=channels[0], out_channels=out_channels)
