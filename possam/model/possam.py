"""PosSAM's trainable part, and the builder that assembles it (paper, Fig. 3).

Shapes: B images, Q queries, K classes, L layers, C channels, E CLIP embedding, H W.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.layers import MLP
from possam.model.ops.nearest import nearest_regions
from possam.model.options import Colour, MaskPooling, ModelOptions, RegionFeatures
from possam.model.pooling import RegionPooling, hard_masks, mask_pool, resized_masks
from possam.model.pyramid import SCALES
from possam.model.region_decoder import RegionDecoder
from possam.model.registry import DECODERS, POOLINGS, load_part
from possam.runtime.errors import InputError

MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound of its temperature."""


@dataclass(frozen=True)
class LayerOutput:
    """What one decoder layer predicts.

    Attributes:
        mask_logits: (B, Q, H, W) of the mask features' size, positive inside.
        embeddings: (B, Q, E) float32, unit norm.
        iou_logits: (B, Q), whose sigmoid is the expected IoU; ``None`` without an IoU head.
    """

    mask_logits: Tensor
    embeddings: Tensor
    iou_logits: Tensor | None


@dataclass(frozen=True)
class PosSAMOutput:
    """Predictions.

    Attributes:
        layers: only the last, or decoder_layers + 1 (the first from the initial queries).
        mask_logits: (L, B, Q, H, W), those of all ``layers``.
        clip_pooled: (B, Q, Cc) float32: CLIP's dense features inside the last layer's masks.
    """

    layers: tuple[LayerOutput, ...]
    mask_logits: Tensor
    clip_pooled: Tensor


class PosSAM(nn.Module):
    """Region decoder, IoU head and region pooling: what is trained, without the frozen towers."""

    def __init__(
        self,
        *,
        decoder: RegionDecoder,
        iou_head: nn.Module | None,
        pooling: RegionPooling,
        region_features: RegionFeatures,
        mask_pooling: MaskPooling,
        embed_dim: int,
        initial_temperature: float,
        padding: Colour,
    ) -> None:
        super().__init__()
        self.decoder = decoder
        self.iou_head = iou_head
        self.pooling = pooling
        self.region_features: RegionFeatures = region_features
        self.mask_pooling: MaskPooling = mask_pooling
        self.padding = padding  # of the images it was trained on
        self.void_embed = nn.Parameter(torch.empty(1, embed_dim))
        self.log_logit_scale = nn.Parameter(torch.tensor(-math.log(initial_temperature)))
        nn.init.normal_(self.void_embed, std=embed_dim**-0.5)

    def forward(
        self,
        backbone: Sequence[Tensor],
        clip_features: Tensor,
        *,
        all_layers: bool = False,
        masks: Tensor | None = None,
    ) -> PosSAMOutput:
        """Predict masks and embeddings from maps of one extent, of any float type.

        Args:
            backbone: what masks are made from, finest first: SAM's one map (B, Cs, h, w), or the
                four stages of CLIP.
            clip_features: (B, Cc, h', w'), CLIP's dense map.
            all_layers: predictions of all layers (training), else only of the last.
            masks: (B, M, H, W) logits, of any size, that are embedded in place of the last layer's;
                a mask's query is then the one whose own mask is most like it.
        """
        dtype = self.void_embed.dtype
        # Convolutions are fastest on maps with their channels innermost in memory.
        backbone = [m.to(dtype, memory_format=torch.channels_last) for m in backbone]
        clip_features = clip_features.to(dtype)
        mask_features, regions, embeddings = self.decoder(backbone, all_layers=all_layers)
        # All layers of an image go through the heads together, as L * Q masks.
        layers, queries = regions.shape[1:3]
        mask_logits = embeddings.flatten(1, 2) @ mask_features.flatten(2)
        mask_logits = mask_logits.unflatten(2, mask_features.shape[-2:])
        if masks is not None:
            regions, mask_logits = nearest_regions(regions, mask_logits, masks), masks
            queries = regions.shape[2]
        masks = hard_masks(mask_logits)
        if self.mask_pooling == "area":
            clip_tokens = mask_pool(clip_features, masks)
        else:
            clip_tokens = mask_pool(clip_features, resized_masks(mask_logits, clip_features))
        region_tokens = regions.flatten(1, 2)
        if self.region_features == "neck":
            region_tokens = mask_pool(backbone[0], masks)
        elif self.region_features != "queries":
            pooled = mask_pool(mask_features, masks)
            both = self.region_features == "mask_features_and_queries"
            region_tokens = torch.cat((pooled, region_tokens), -1) if both else pooled
        # Masks of different layers never meet in the pooling: (B, L * Q, C) -> (B * L, Q, C).
        by_layer = (t.unflatten(1, (layers, queries)) for t in (region_tokens, clip_tokens))
        classes = self.pooling(*(tokens.flatten(0, 1) for tokens in by_layer))
        # unbind, not indexing: its backward pass fills the stacked gradient once.
        stacked = mask_logits.unflatten(1, (layers, queries)).transpose(0, 1)
        ious: Sequence[Tensor | None] = [None] * layers
        if self.iou_head is not None:
            ious = self.iou_head(regions).squeeze(-1).unbind(1)
        outputs = map(LayerOutput, stacked, classes.unflatten(0, (-1, layers)).unbind(1), ious)
        return PosSAMOutput(tuple(outputs), stacked, clip_pooled=clip_tokens[:, -queries:])

    def class_logits(self, embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        """Temperature-scaled cosine with every class's best synonym, and with void.

        ``embeddings`` (..., E), unit norm -> (..., K + 1) float32, void last; or an InputError.
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
    options: ModelOptions,
    *,
    backbone_channels: Sequence[int],
    clip_channels: int,
    embed_dim: int,
    seed: int,
) -> PosSAM:
    """Assemble PosSAM from the parts that ``options`` name in :mod:`possam.model.registry`.

    The initial weights depend only on ``seed`` and the options. The global random state is left as
    it was. ``backbone_channels``: one number per map, finest first: one for SAM, four for CLIP
    (else an InputError).
    """
    if len(backbone_channels) != (1 if options.backbone == "sam" else SCALES):
        raise InputError(
            f"model.backbone: {options.backbone} does not go with maps of "
            f"{list(backbone_channels)} channels; SAM gives one map, CLIP's ConvNeXt {SCALES}"
        )
    width = options.hidden_dim
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        decoder: RegionDecoder = load_part(DECODERS, options.decoder)(
            options, backbone_channels=backbone_channels
        )
        iou_head = MLP(width, width, 1, layers=3) if options.iou_head else None
        region_channels = {
            "mask_features": decoder.mask_channels,
            "neck": backbone_channels[0],
            "queries": width,
            "mask_features_and_queries": decoder.mask_channels + width,
        }
        pooling = load_part(POOLINGS, options.pooling)(
            options,
            region_channels=region_channels[options.region_features],
            clip_channels=clip_channels,
            embed_dim=embed_dim,
        )
        return PosSAM(
            decoder=decoder,
            iou_head=iou_head,
            pooling=pooling,
            region_features=options.region_features,
            mask_pooling=options.mask_pooling,
            embed_dim=embed_dim,
            initial_temperature=options.initial_temperature,
            padding=options.padding,
        )


def rebuild_possam(description: Mapping[str, Any], *, seed: int) -> PosSAM:
    """As :func:`build_possam`, from the flat mapping of its arguments stored with weights."""
    fields = {name: description[name] for name in ModelOptions.model_fields}
    others = {name: value for name, value in description.items() if name not in fields}
    options = ModelOptions.model_validate_json(json.dumps(fields))  # JSON's lists are tuples here
    return build_possam(options, **others, seed=seed)
