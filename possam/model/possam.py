"""PosSAM's trainable part, and the builder that assembles it (paper, Fig. 3).

Shapes: B images, Q queries, K classes, L layers, C channels, E CLIP embedding, H W.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.layers import MLP
from possam.model.mask_decoder import MaskDecoder
from possam.model.pixel_decoder import PixelDecoder
from possam.model.pooling import (
    Interaction,
    PoolingName,
    RegionPooling,
    build_pooling,
    hard_masks,
    mask_pool,
)
from possam.model.pyramid import SCALES, PyramidName, build_pyramid
from possam.model.region_decoder import Mask2FormerDecoder, RegionDecoder
from possam.model.two_way import TwoWayDecoder
from possam.runtime.errors import InputError

Backbone = Literal["sam", "clip"]
DecoderName = Literal["mask2former", "two_way"]
RegionFeatures = Literal["mask_features", "neck", "queries"]
MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound of its temperature."""


@dataclass(frozen=True)
class LayerOutput:
    """What one decoder layer predicts.

    Attributes:
        mask_logits: (B, Q, H, W) of the mask features' size, positive inside; without gradient.
        embeddings: (B, Q, E) float32, unit norm.
        iou_logits: (B, Q), sigmoid of which is the IoU expected; ``None`` without an IoU head.
    """

    mask_logits: Tensor
    embeddings: Tensor
    iou_logits: Tensor | None


@dataclass(frozen=True)
class PosSAMOutput:
    """Predictions of the layers asked for, the last layer last.

    Attributes:
        layers: one entry, or decoder_layers + 1 (the first from the initial queries).
        mask_logits: (L, B, Q, H, W), those of all ``layers``, without gradient.
        clip_pooled: (B, Q, Cc) float32: CLIP's dense features inside the last layer's masks.
        mask_embeddings: (B, L * Q, C) and
        mask_features: (B, C, H, W), whose products the mask logits are.
    """

    layers: tuple[LayerOutput, ...]
    mask_logits: Tensor
    clip_pooled: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor

    def select_masks(self, layer: Tensor, image: Tensor, query: Tensor) -> Tensor:
        """Logits of some masks, with gradient: three (M,) int64 -> (M, H, W).

        Few of all masks are matched with a target and penalised. Their gradient alone is made and
        multiplied, not that of all masks, which would be zero elsewhere.
        """
        count, batch, queries, *size = self.mask_logits.shape
        selected: Tensor = SelectedProducts.apply(
            self.mask_embeddings,
            self.mask_features.flatten(2).transpose(1, 2),
            self.mask_logits.transpose(0, 1).reshape(batch, count * queries, -1),
            image,
            layer * queries + query,
        )
        return selected.unflatten(1, size)


class SelectedProducts(torch.autograd.Function):
    """``(a @ b.mT)[image, row]`` of (B, R, C) and (B, N, C), whose values (B, R, N) are known
    already: (M, N).
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, products: Tensor, image: Tensor, row: Tensor
    ) -> Tensor:
        ctx.save_for_backward(a, b, image, row)
        return products[image, row]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        a, b, image, row = ctx.saved_tensors
        own = image[:, None] == torch.arange(len(a), device=image.device)  # (M, B)
        place = (own.cumsum(0) - 1).gather(1, image[:, None]).squeeze(1)  # among its image's
        most = int(own.sum(0).max())
        padded = gradient.new_zeros((len(a), most, gradient.shape[1]), dtype=b.dtype)
        padded[image, place] = gradient.to(b.dtype)
        rows = b.new_zeros((len(a), most, a.shape[2]))
        rows[image, place] = a[image, row].to(b.dtype)
        d_a = torch.zeros_like(a)
        d_a.index_put_((image, row), (padded @ b)[image, place].to(a.dtype), accumulate=True)
        return d_a, padded.mT @ rows, None, None, None


class PosSAM(nn.Module):
    """Region decoder, IoU head and region pooling.

    The frozen towers and the vocabulary are not in it: its state dict holds what is trained.
    """

    def __init__(
        self,
        *,
        decoder: RegionDecoder,
        iou_head: nn.Module | None,
        pooling: RegionPooling,
        region_features: RegionFeatures,
        embed_dim: int,
        logit_scale: float,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.iou_head = iou_head
        self.pooling = pooling
        self.region_features: RegionFeatures = region_features
        self.void_embed = nn.Parameter(torch.empty(1, embed_dim))
        self.log_logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)))
        nn.init.normal_(self.void_embed, std=embed_dim**-0.5)

    def forward(
        self, backbone: Sequence[Tensor], clip_features: Tensor, *, all_layers: bool = False
    ) -> PosSAMOutput:
        """Predict masks and embeddings.

        Args:
            backbone: the maps that masks are made from, finest first, any float type: SAM's neck
                output (B, Cs, h, w) alone, or the four stages of CLIP.
            clip_features: (B, Cc, h', w'), CLIP's dense map of the same extent.
            all_layers: predictions of all layers (training), else of the last alone.
        """
        dtype = self.void_embed.dtype
        backbone, clip_features = [m.to(dtype) for m in backbone], clip_features.to(dtype)
        mask_features, regions, embeddings = self.decoder(backbone, all_layers=all_layers)
        count, queries = regions.shape[1:3]
        # All layers of an image go through the heads together, as L * Q masks.
        embeddings = embeddings.flatten(1, 2)
        with torch.no_grad():
            mask_logits = embeddings @ mask_features.flatten(2)
            mask_logits = mask_logits.unflatten(2, tuple(mask_features.shape[-2:]))
        inside = hard_masks(mask_logits)
        clip_tokens = mask_pool(clip_features, inside)
        if self.region_features == "mask_features":
            region_tokens = mask_pool(mask_features, inside)
        elif self.region_features == "neck":
            region_tokens = mask_pool(backbone[0], inside)
        else:
            region_tokens = regions.flatten(1, 2)
        pooled = self.pooling(
            self._by_layer(region_tokens, queries), self._by_layer(clip_tokens, queries)
        )
        # unbind, not indexing: its backward pass fills the stacked gradient once.
        stacked = mask_logits.unflatten(1, (count, queries)).transpose(0, 1)
        classes = pooled.unflatten(0, (-1, count)).unbind(1)
        ious: Sequence[Tensor | None] = [None] * count
        if self.iou_head is not None:
            ious = self.iou_head(regions).squeeze(-1).unbind(1)
        layers = map(LayerOutput, stacked.unbind(0), classes, ious)
        return PosSAMOutput(
            layers=tuple(layers),
            mask_logits=stacked,
            clip_pooled=clip_tokens[:, -queries:],
            mask_embeddings=embeddings,
            mask_features=mask_features,
        )

    @staticmethod
    def _by_layer(tokens: Tensor, queries: int) -> Tensor:
        """(B, L * Q, C) -> (B * L, Q, C): masks of different layers never meet in the pooling."""
        return tokens.unflatten(1, (-1, queries)).flatten(0, 1)

    def class_logits(self, embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        """Temperature-scaled cosine with every class's best synonym, and with void.

        Args:
            embeddings: (..., E), unit norm.
            text: the vocabulary.

        Returns:
            (..., K + 1) float32, void last.
        """
        if text.names.shape[-1] != self.void_embed.shape[-1]:
            raise InputError(
                f"vocabulary: text embeddings have {text.names.shape[-1]} channels, the model's "
                f"{self.void_embed.shape[-1]}; embed the names with the CLIP it was built for"
            )
        # The temperature multiplies rounding errors by up to 100: no autocast here.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            void = embeddings @ F.normalize(self.void_embed.float(), dim=-1).T
            cosine = torch.cat((text.similarity(embeddings), void), dim=-1)
            return cosine * self.log_logit_scale.float().exp().clamp(max=MAX_LOGIT_SCALE)


def build_possam(
    *,
    backbone_channels: Sequence[int],
    clip_channels: int,
    embed_dim: int,
    logit_scale: float,
    seed: int,
    backbone: Backbone,
    hidden_dim: int,
    queries: int,
    heads: int,
    pyramid: PyramidName | None,
    pixel_encoder_layers: int,
    pixel_encoder_ffn: int,
    deformable_points: int,
    decoder: DecoderName,
    decoder_layers: int,
    decoder_ffn: int,
    pooling: PoolingName,
    pooling_dim: int,
    pooling_heads: int,
    pooling_interaction: Interaction,
    region_features: RegionFeatures,
    iou_head: bool,
) -> PosSAM:
    """Assemble PosSAM; its initial weights depend on ``seed`` and the widths alone.

    Args:
        backbone_channels: of the backbone's maps, finest first: SAM's one, or CLIP's four.
        clip_channels: of CLIP's dense map.
        embed_dim: of CLIP's text embeddings; ``logit_scale``: CLIP's, the initial temperature.
        seed: of the initial weights; the global random state is left as it was.
        backbone, ...: the fields of the ``model`` parameters, with their meaning.

    Raises:
        InputError: maps of another number than the backbone has; ``mask2former`` without a pyramid.
    """
    if len(backbone_channels) != (1 if backbone == "sam" else SCALES):
        raise InputError(
            f"model.backbone: {backbone} does not go with maps of {list(backbone_channels)} "
            f"channels; SAM gives one map, CLIP's ConvNeXt {SCALES}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        regions: RegionDecoder
        if decoder == "two_way":
            regions = TwoWayDecoder(
                in_channels=backbone_channels[0],
                channels=hidden_dim,
                queries=queries,
                heads=heads,
                layers=decoder_layers,
                ffn=decoder_ffn,
            )
        else:
            scales = build_pyramid(pyramid, channels=backbone_channels, out_channels=hidden_dim)
            regions = Mask2FormerDecoder(
                pyramid=scales,
                pixel_decoder=PixelDecoder(
                    in_channels=scales.out_channels,
                    channels=hidden_dim,
                    mask_channels=hidden_dim,
                    heads=heads,
                    layers=pixel_encoder_layers,
                    ffn=pixel_encoder_ffn,
                    points=deformable_points,
                ),
                mask_decoder=MaskDecoder(
                    channels=hidden_dim,
                    mask_channels=hidden_dim,
                    queries=queries,
                    heads=heads,
                    layers=decoder_layers,
                    ffn=decoder_ffn,
                ),
            )
        region_channels = {
            "mask_features": regions.mask_channels,
            "neck": backbone_channels[0],
            "queries": hidden_dim,
        }
        return PosSAM(
            decoder=regions,
            iou_head=MLP(hidden_dim, hidden_dim, 1, layers=3) if iou_head else None,
            pooling=build_pooling(
                pooling,
                region_channels=region_channels[region_features],
                clip_channels=clip_channels,
                dim=pooling_dim,
                heads=pooling_heads,
                embed_dim=embed_dim,
                interaction=pooling_interaction,
            ),
            region_features=region_features,
            embed_dim=embed_dim,
            logit_scale=logit_scale,
        )
