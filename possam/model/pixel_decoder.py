"""Mask2Former's pixel decoder: deformable attention over three scales, then one step of an FPN.

Shapes: B images, N tokens of the three coarse levels, C channels, H W.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.deformable import DeformableAttention, reference_points
from possam.model.layers import FeedForward, LayerNorm, sine_positions

LEVELS = 3
"""Scales that attend to each other: 1/32, 1/16 and 1/8."""


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each with a residual and a norm after it."""

    def __init__(self, *, channels: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(
            channels=channels, heads=heads, levels=LEVELS, points=points
        )
        self.attention_norm = LayerNorm(channels)
        self.ffn = FeedForward(channels=channels, hidden=ffn)
        self.ffn_norm = LayerNorm(channels)
        nn.init.xavier_uniform_(self.ffn.fc1.weight)
        nn.init.xavier_uniform_(self.ffn.fc2.weight)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        *,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """(B, N, C) tokens and (N, C) positions -> (B, N, C)."""
        mixed = self.attention(tokens + positions, tokens, references=references, shapes=shapes)
        tokens = self.attention_norm(tokens + mixed)
        return self.ffn_norm(tokens + self.ffn(tokens))


class PixelDecoder(nn.Module):
    """Four maps in; three refined coarse maps and the mask features out."""

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        channels: int,
        mask_channels: int,
        heads: int,
        layers: int,
        ffn: int,
        points: int,
    ) -> None:
        """``in_channels``: of the four input maps, finest first."""
        super().__init__()
        self.mask_channels = mask_channels
        self.input_projections = nn.ModuleList(
            nn.Sequential(_projection(width, channels), GroupNorm(channels))
            for width in reversed(in_channels[-LEVELS:])
        )
        # Without layers nothing reads it, and parameters without gradients stop parallel training.
        self.level_embed = nn.Parameter(torch.empty(LEVELS, channels)) if layers else None
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(channels=channels, heads=heads, points=points, ffn=ffn)
            for _ in range(layers)
        )
        self.lateral = nn.Sequential(
            _fpn_conv(in_channels[0], channels, 1, bias=False), GroupNorm(channels)
        )
        self.output = nn.Sequential(
            _fpn_conv(channels, channels, 3, bias=False), GroupNorm(channels), nn.ReLU()
        )
        self.mask_projection = _fpn_conv(channels, mask_channels, 1, bias=True)
        if self.level_embed is not None:
            nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[tuple[int, int]]]:
        """Decode.

        Args:
            maps: four maps (B, C_i, H_i, W_i), finest (1/4) first.

        Returns:
            mask features (B, C_mask, H, W) at the finest scale; the three refined coarse maps as
            tokens (B, H_i * W_i, C), coarsest first; and their (H_i, W_i).
        """
        finest, *coarse = maps
        coarse.reverse()
        shapes = [(level.shape[-2], level.shape[-1]) for level in coarse]
        projected = [
            projection(level).flatten(2).transpose(1, 2)
            for projection, level in zip(self.input_projections, coarse, strict=True)
        ]
        tokens = torch.cat(projected, dim=1)
        if self.level_embed is not None:
            encoded = [
                sine_positions(*shape, tokens.shape[-1], device=tokens.device) + embed
                for shape, embed in zip(shapes, self.level_embed, strict=True)
            ]
            positions = torch.cat(encoded)
            references = reference_points(shapes, device=tokens.device)
            for layer in self.layers:
                tokens = layer(tokens, positions, references=references, shapes=shapes)
        levels = list(tokens.split([h * w for h, w in shapes], dim=1))
        lateral = self.lateral(finest)
        upsampled = F.interpolate(
            levels[-1].transpose(1, 2).unflatten(2, shapes[-1]).to(lateral.dtype),
            size=lateral.shape[-2:],
            mode="bilinear",
            align_corners=False,
        )
        return self.mask_projection(self.output(lateral + upsampled)), levels, shapes


def _projection(channels: int, out: int) -> nn.Conv2d:
    """A 1 x 1 convolution with Mask2Former's initial weights for its encoder's inputs."""
    conv = nn.Conv2d(channels, out, 1)
    nn.init.xavier_uniform_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _fpn_conv(channels: int, out: int, kernel: int, *, bias: bool) -> nn.Conv2d:
    """A convolution with Mask2Former's initial weights for its FPN (uniform, by fan-in)."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class GroupNorm(nn.GroupNorm):
    """Group normalisation with Mask2Former's 32 groups, or fewer where 32 does not divide C."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        # Of maps with their channels innermost PyTorch's backward pass is eight times slower.
        return super().forward(input.contiguous())
