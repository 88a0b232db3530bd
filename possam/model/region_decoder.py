"""From a backbone's maps to regions: the interface of ``registry.DECODERS``, and Mask2Former's.

Shapes: B images, Q queries, L layers, C channels, H W.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from possam.model.mask_decoder import MaskDecoder
from possam.model.options import ModelOptions
from possam.model.pixel_decoder import PixelDecoder
from possam.model.registry import PYRAMIDS, load_part


class Regions(NamedTuple):
    """What a decoder finds.

    Attributes:
        mask_features: (B, C_mask, H, W), of stride 4 at the paper's scale.
        features: (B, L, Q, C), normalised.
        embeddings: (B, L, Q, C_mask); a mask's logits are their product with ``mask_features``.
    """

    mask_features: Tensor
    features: Tensor
    embeddings: Tensor


class RegionDecoder(nn.Module):
    """Interface, built with the model's options and the ``backbone_channels`` of the maps."""

    mask_channels: int  # of the mask features

    def forward(self, backbone: Sequence[Tensor], *, all_layers: bool) -> Regions:
        """Maps (B, C_i, H_i, W_i), finest first -> regions of all layers, or only of the last.

        L is layers + 1 (initial queries first) or 1.
        """
        raise NotImplementedError


class Mask2FormerDecoder(RegionDecoder):
    """Four scales, the pixel decoder over them, and masked-attention queries on its output."""

    def __init__(self, options: ModelOptions, *, backbone_channels: Sequence[int]) -> None:
        super().__init__()
        width = self.mask_channels = options.hidden_dim
        self.pyramid = load_part(PYRAMIDS[options.backbone], options.pyramid)(
            channels=backbone_channels, out_channels=width
        )
        self.pixel_decoder = PixelDecoder(
            in_channels=self.pyramid.out_channels,
            channels=width,
            mask_channels=width,
            heads=options.heads,
            layers=options.pixel_encoder_layers,
            ffn=options.pixel_encoder_ffn,
            points=options.deformable_points,
        )
        self.mask_decoder = MaskDecoder(
            channels=width,
            mask_channels=width,
            queries=options.queries,
            heads=options.heads,
            layers=options.decoder_layers,
            ffn=options.decoder_ffn,
        )

    def forward(self, backbone: Sequence[Tensor], *, all_layers: bool) -> Regions:
        mask_features, levels, shapes = self.pixel_decoder(self.pyramid(*backbone))
        features, embeddings = self.mask_decoder(
            levels, mask_features, shapes=shapes, all_layers=all_layers
        )
        return Regions(mask_features, features, embeddings)
