"""Mask2Former's masked-attention transformer decoder, without a class head.

Shapes: B images, Q queries, N tokens of one level, C channels, H W; L layers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.layers import MLP, FeedForward, LayerNorm, MultiHeadAttention, sine_positions
from possam.model.pixel_decoder import LEVELS, Size


class MaskedDecoderLayer(nn.Module):
    """Masked cross-attention, self-attention, feed-forward; a norm after each residual."""

    def __init__(self, *, channels: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.cross_attention = MultiHeadAttention(channels=channels, heads=heads)
        self.cross_norm = LayerNorm(channels)
        self.self_attention = MultiHeadAttention(channels=channels, heads=heads)
        self.self_norm = LayerNorm(channels)
        self.ffn = FeedForward(channels=channels, hidden=ffn)
        self.ffn_norm = LayerNorm(channels)
        for linear in (self.ffn.fc1, self.ffn.fc2):
            nn.init.xavier_uniform_(linear.weight)
        for attention in (self.cross_attention, self.self_attention):
            # The reference keeps one (3 C, C) matrix for query, key and value: its Xavier bound is
            # that of a (C, C) matrix times the square root of one half.
            for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
                nn.init.xavier_uniform_(linear.weight, gain=math.sqrt(0.5))
                nn.init.zeros_(linear.bias)
            nn.init.xavier_uniform_(attention.out_proj.weight)
            nn.init.zeros_(attention.out_proj.bias)

    def forward(
        self, queries: Tensor, positions: Tensor, *, keys: Tensor, values: Tensor, allowed: Tensor
    ) -> Tensor:
        """(B, Q, C) queries, (Q, C) their positions, (B, N, C) keys and values, (B, Q, N) mask."""
        mixed = self.cross_attention(queries + positions, keys, values, allowed=allowed)
        queries = self.cross_norm(queries + mixed)
        placed = queries + positions
        queries = self.self_norm(queries + self.self_attention(placed, placed, queries))
        return self.ffn_norm(queries + self.ffn(queries))


class MaskDecoder(nn.Module):
    """Queries refined on one scale after another, each attending inside its own previous mask."""

    def __init__(
        self, *, channels: int, mask_channels: int, queries: int, heads: int, layers: int, ffn: int
    ) -> None:
        super().__init__()
        self.query_features = nn.Parameter(torch.empty(queries, channels))
        self.query_positions = nn.Parameter(torch.empty(queries, channels))
        self.level_embed = nn.Parameter(torch.empty(LEVELS, channels))
        self.layers = nn.ModuleList(
            MaskedDecoderLayer(channels=channels, heads=heads, ffn=ffn) for _ in range(layers)
        )
        self.norm = LayerNorm(channels)
        self.mask_head = MLP(channels, channels, mask_channels, layers=3)
        for parameter in (self.query_features, self.query_positions, self.level_embed):
            nn.init.normal_(parameter)

    def forward(
        self,
        levels: Sequence[Tensor],
        mask_features: Tensor,
        *,
        shapes: Sequence[Size],
        all_layers: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Refine the queries on three token maps (B, H_i * W_i, C), coarsest first.

        Args:
            mask_features: (B, C_mask, H, W); ``shapes``: (H_i, W_i) of the levels.
            all_layers: return every layer, the initial queries first; else only the last layer.

        Returns:
            region features (B, L, Q, C), normalised, and mask embeddings (B, L, Q, C_mask), with
            L = layers + 1 or 1; a mask's logits are its embedding times ``mask_features``.
        """
        values = [tokens + embed for tokens, embed in zip(levels, self.level_embed, strict=True)]
        keys = [
            value + sine_positions(*shape, value.shape[-1], device=value.device)
            for value, shape in zip(values, shapes, strict=True)
        ]
        # Bilinear resizing is linear: resizing the mask features once per level gives the same
        # attention masks as resizing every layer's mask logits.
        resized = [
            F.interpolate(mask_features.detach(), size=shape, mode="bilinear", align_corners=False)
            for shape in shapes
        ]
        queries = self.query_features.expand(mask_features.shape[0], -1, -1)
        features = [self.norm(queries)]
        embeddings = [self.mask_head(features[-1])]
        for index, layer in enumerate(self.layers):
            level = index % LEVELS
            queries = layer(
                queries,
                self.query_positions,
                keys=keys[level],
                values=values[level],
                allowed=attention_mask(embeddings[-1].detach() @ resized[level].flatten(2)),
            )
            features.append(self.norm(queries))
            embeddings.append(self.mask_head(features[-1]))
        first = 0 if all_layers else -1
        return torch.stack(features[first:], dim=1), torch.stack(embeddings[first:], dim=1)


def attention_mask(logits: Tensor) -> Tensor:
    """(B, Q, N) logits -> bool: a query may look inside its mask, or anywhere if that is empty."""
    inside = logits >= 0
    return inside | ~inside.any(dim=-1, keepdim=True)
