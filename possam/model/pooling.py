"""Mask pooling, and networks that embed the pooled features (paper, section 3.4, Table 5).

A new pooling is a class here and a line in ``registry.POOLINGS``.

Shapes: B images, Q masks, N tokens, C channels, E CLIP embedding, H W of masks, h w of features.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.layers import LayerNorm, MultiHeadAttention
from possam.model.ops.resampling import resample_area
from possam.model.options import ModelOptions


def hard_masks(mask_logits: Tensor) -> Tensor:
    """1 where a logit is positive, else 0, in the logits' type; carries no gradient."""
    logits = mask_logits.detach()
    if torch.compiler.is_exporting():
        return (logits > 0).to(logits.dtype)
    # Written as floats at once: a comparison that is converted afterwards takes ten times as long.
    return torch.gt(logits, 0, out=torch.empty_like(logits))


def resized_masks(mask_logits: Tensor, features: Tensor) -> Tensor:
    """:func:`hard_masks` of the logits (B, Q, H, W) resized bilinearly to (B, C, h, w)'s h, w."""
    size = (features.shape[-2], features.shape[-1])
    logits = mask_logits.detach()
    return hard_masks(F.interpolate(logits, size=size, mode="bilinear", align_corners=False))


def mask_pool(features: Tensor, masks: Tensor) -> Tensor:
    """Mean of the features (B, C, h, w) inside each mask: (B, Q, C) float32, 0 if it is empty.

    ``masks``: (B, Q, H, W) of 0 and 1, covering the same extent as the features; they are resampled
    to the features' size by area.
    """
    masks = resample_area(masks, (features.shape[-2], features.shape[-1]))
    weights = masks.to(features.dtype).flatten(2)
    total = weights.sum(-1, keepdim=True).float()
    pooled = weights @ features.flatten(2).transpose(1, 2)
    return pooled.float() / total.clamp(min=1e-6)


class Stream(nn.Sequential):
    """Projection of one kind of pooled feature: (..., C) -> (..., D)."""

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(
            LayerNorm(channels), nn.Linear(channels, dim), nn.GELU(), nn.Linear(dim, dim)
        )


class Mixer(nn.Module):
    """Pre-norm feed-forward with a residual, as in a transformer block (ratio 4)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.block(tokens)


class RegionPooling(nn.Module):
    """Interface: region and CLIP features of each mask -> one embedding in CLIP's space.

    Region features are the paper's "SAM features": see ``options.RegionFeatures``. A pooling is
    built with the options of the model, ``region_channels`` (Cr), ``clip_channels`` (Cc) and
    ``embed_dim`` (E).
    """

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        """(B, Q, Cr) and (B, Q, Cc) -> (B, Q, E) float32 of unit norm."""
        raise NotImplementedError


class LocalDiscriminativePooling(RegionPooling):
    """The paper's LDP: two projected streams, fused by self-attention, projected, normalised.

    With ``pooling_interaction: mask`` the two tokens of each mask attend to each other; with
    ``image`` all tokens of all masks of an image do.
    """

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        dim = options.pooling_dim
        self.interaction = options.pooling_interaction
        self.region_stream = Stream(region_channels, dim)
        self.clip_stream = Stream(clip_channels, dim)
        self.stream_embed = nn.Parameter(torch.empty(2, dim))
        self.attention_norm = LayerNorm(dim)
        self.attention = MultiHeadAttention(channels=dim, heads=options.pooling_heads)
        self.mixer = Mixer(dim)
        self.output = nn.Sequential(LayerNorm(2 * dim), nn.Linear(2 * dim, embed_dim))
        nn.init.normal_(self.stream_embed, std=0.02)

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        streams = (self.region_stream(region_tokens), self.clip_stream(clip_tokens))
        tokens = torch.stack(streams, dim=2) + self.stream_embed  # (B, Q, 2, D)
        normed = self.attention_norm(tokens)
        # The tokens of a sequence attend to each other: two of a mask, or all 2Q of an image.
        sequence = normed.flatten(0, 1) if self.interaction == "mask" else normed.flatten(1, 2)
        mixed = self.attention(sequence, sequence, sequence).view(tokens.shape)
        tokens = self.mixer(tokens + mixed)
        return F.normalize(self.output(tokens.flatten(2)).float(), dim=-1)


class CrossAttentionPooling(RegionPooling):
    """Table 5's cross-attention: region features are queries, CLIP features keys and values.

    A mask attends to the CLIP tokens of all masks of its image: with only its own token there
    would be one key, and nothing to choose.
    """

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        dim = options.pooling_dim
        self.region_stream = Stream(region_channels, dim)
        self.clip_stream = Stream(clip_channels, dim)
        self.query_norm = LayerNorm(dim)
        self.key_norm = LayerNorm(dim)
        self.attention = MultiHeadAttention(channels=dim, heads=options.pooling_heads)
        self.mixer = Mixer(dim)
        self.output = nn.Sequential(LayerNorm(dim), nn.Linear(dim, embed_dim))

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        tokens = self.region_stream(region_tokens)
        keys = self.key_norm(self.clip_stream(clip_tokens))
        tokens = self.mixer(tokens + self.attention(self.query_norm(tokens), keys, keys))
        return F.normalize(self.output(tokens).float(), dim=-1)


class RegionOnlyPooling(RegionPooling):
    """Table 5's mask pooling of only the region features ("SAM features")."""

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        dim = options.pooling_dim
        self.stream = Stream(region_channels, dim)
        self.mixer = Mixer(dim)
        self.output = nn.Sequential(LayerNorm(dim), nn.Linear(dim, embed_dim))

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        return F.normalize(self.output(self.mixer(self.stream(region_tokens))).float(), dim=-1)


class ClipOnlyPooling(RegionOnlyPooling):
    """Table 5's mask pooling of only CLIP's features."""

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__(
            options,
            region_channels=clip_channels,
            clip_channels=region_channels,
            embed_dim=embed_dim,
        )

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        return super().forward(clip_tokens, region_tokens)
