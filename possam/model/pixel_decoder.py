"""Mask2Former's pixel decoder: deformable attention over three scales, then one step of an FPN.

Shapes: B images, Q queries, N tokens of the three coarse levels, C channels, H W; of deformable
attention: M heads, L levels, P points, D channels per head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.layers import FeedForward, LayerNorm, sine_positions
from possam.model.ops.attention import softmax_of_short_rows
from possam.model.ops.deformable import sample_sum

Size = tuple[int, int]  # height, width

LEVELS = 3
"""Scales that attend to each other: 1/32, 1/16 and 1/8."""


class DeformableAttention(nn.Module):
    """Deformable DETR's: each query sums samples of P places on each level, by its own weights."""

    def __init__(self, *, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        # Offsets start as rays, one direction per head, 1..P cells long; weights start equal.
        angle = torch.arange(heads) * (2 * math.pi / heads)
        ray = torch.stack((angle.cos(), angle.sin()), dim=-1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        rays = ray[:, None, None] * torch.arange(1, points + 1)[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(rays.expand(-1, levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Tensor, value: Tensor, *, references: Tensor, shapes: Sequence[Size]
    ) -> Tensor:
        """(B, Q, C) queries with positions added, (B, N, C) values -> (B, Q, C).

        ``value``: the levels' maps one after another, rows first; ``shapes``: their (H, W);
        ``references``: (Q, 2) x, y in 0..1 of the image.
        """
        sites = (self.heads, self.levels, self.points)
        values = self.value_proj(value).unflatten(-1, (self.heads, -1)).float()
        # Sampling places need float32: bfloat16 resolves 1/256 of the image at best.
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*sites, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1))
        weights = softmax_of_short_rows(weights).unflatten(-1, sites[1:])
        mixed = sample_sum(values, offsets, weights, references=references, shapes=shapes)
        return self.output_proj(mixed)


def reference_points(shapes: Sequence[Size], *, device: torch.device) -> Tensor:
    """Centres of all cells of all levels, (N, 2) x, y in 0..1."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        points.append(torch.cartesian_prod(y, x).flip(-1))
    return torch.cat(points)


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
        self, tokens: Tensor, positions: Tensor, *, references: Tensor, shapes: Sequence[Size]
    ) -> Tensor:
        """(B, N, C) tokens and (N, C) positions -> (B, N, C)."""
        mixed = self.attention(tokens + positions, tokens, references=references, shapes=shapes)
        tokens = self.attention_norm(tokens + mixed)
        return self.ffn_norm(tokens + self.ffn(tokens))


class PixelDecoder(nn.Module):
    """Four maps of ``in_channels``, finest first -> three refined coarse maps and mask features."""

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
        super().__init__()
        self.input_projections = nn.ModuleList(
            nn.Sequential(_conv(width, channels, 1, nn.init.xavier_uniform_), GroupNorm(channels))
            for width in reversed(in_channels[-LEVELS:])
        )
        # Without layers nothing reads it, and parameters without gradients stop parallel training.
        self.level_embed = nn.Parameter(torch.empty(LEVELS, channels)) if layers else None
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(channels=channels, heads=heads, points=points, ffn=ffn)
            for _ in range(layers)
        )
        self.lateral = nn.Sequential(
            _conv(in_channels[0], channels, 1, _by_fan_in, bias=False), GroupNorm(channels)
        )
        self.output = nn.Sequential(
            _conv(channels, channels, 3, _by_fan_in, bias=False), GroupNorm(channels), nn.ReLU()
        )
        self.mask_projection = _conv(channels, mask_channels, 1, _by_fan_in)
        if self.level_embed is not None:
            nn.init.normal_(self.level_embed)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Size]]:
        """Four maps (B, C_i, H_i, W_i), finest (1/4) first -> mask features and refined levels.

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


_by_fan_in = partial(nn.init.kaiming_uniform_, a=1)


def _conv(
    channels: int, out: int, kernel: int, init: Callable[..., Tensor], *, bias: bool = True
) -> nn.Conv2d:
    """A convolution initialised as in Mask2Former: Xavier's, but by fan-in in its FPN."""
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
    init(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class GroupNorm(nn.GroupNorm):
    """Group normalisation with Mask2Former's 32 groups, or fewer where 32 does not divide C."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        # PyTorch's backward pass is eight times slower on maps with their channels innermost;
        # everything else, above all convolutions, is faster on them.
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)
