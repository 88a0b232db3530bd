"""Layers that several parts of the network share.

Shapes: B images, Q queries, N tokens, C channels, H W.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def resize_bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(..., mode="bilinear", align_corners=False)`` of (B, C, H, W), but where both
    sides shrink by an even whole factor: there it is the mean of each block's four middle cells,
    which is taken at once (on a CPU ten times as fast), and differs by float32's rounding at most.
    """
    factors = tuple(side // new for side, new in zip(maps.shape[-2:], size, strict=True))
    exact = all(
        new * f == side for new, f, side in zip(size, factors, maps.shape[-2:], strict=True)
    )
    if not exact or any(factor % 2 for factor in factors):
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    (down, right), (y, x) = factors, (factor // 2 - 1 for factor in factors)
    rows = maps[..., y::down, :].float() + maps[..., y + 1 :: down, :].float()
    return (0.25 * (rows[..., x::right] + rows[..., x + 1 :: right])).to(maps.dtype)


def area_resample(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(..., mode="area")`` of (B, Q, H, W) masks of zeros and ones.

    On a CPU sides are halved as long as they can be: two fifths of the time or less, the same
    values (means of up to 256 such cells are exact in bfloat16).
    """
    height, width = masks.shape[-2:]
    while masks.device.type == "cpu" and not (height % (2 * size[0]) or width % (2 * size[1])):
        rows = masks[..., ::2, :] + masks[..., 1::2, :]
        masks = 0.25 * (rows[..., ::2] + rows[..., 1::2])
        height, width = masks.shape[-2:]
    if (height, width) == size:
        return masks
    if height % size[0] == 0 and width % size[1] == 0:
        return F.avg_pool2d(masks, (height // size[0], width // size[1]))
    return F.interpolate(masks, size=size, mode="area")


def double_bilinear(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, 2 H, 2 W), bilinear, ``align_corners=False``: ``F.interpolate`` with a
    faster backward pass on a CPU.
    """
    if maps.device.type == "cpu":
        doubled: Tensor = _Double.apply(maps)
        return doubled
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)


class _Double(torch.autograd.Function):
    """A cell gives a quarter, three quarters, three quarters and a quarter along each side, and at
    the border the whole. So its gradient is a convolution of the result's, repeated at the border.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        channels = gradient.shape[1]
        line = gradient.new_tensor((0.25, 0.75, 0.75, 0.25))
        kernel = (line[:, None] * line).expand(channels, 1, 4, 4)
        padded = F.pad(gradient, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(padded, kernel, stride=2, groups=channels)


class MLP(nn.Sequential):
    """``layers`` linear layers with ReLU between them: (..., C) -> (..., out)."""

    def __init__(self, channels: int, hidden: int, out: int, *, layers: int) -> None:
        widths = [channels, *[hidden] * (layers - 1), out]
        modules: list[nn.Module] = []
        for index in range(layers):
            modules.append(nn.Linear(widths[index], widths[index + 1]))
            if index + 1 < layers:
                modules.append(nn.ReLU())
        super().__init__(*modules)


class MultiHeadAttention(nn.Module):
    """Scaled dot-product attention with separate projections of query, key and value.

    Mask2Former and DETR give keys a position that values do not carry, so the three are separate.
    """

    def __init__(self, *, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, allowed: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C); key, value: (B, N, C).
            allowed: (B, Q, N) bool, True where a query may look; all of it when ``None``. Each row
                needs one True at least.

        Returns:
            (B, Q, C).
        """
        mask = None if allowed is None else allowed.unsqueeze(1)
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        if query.device.type == "cpu":
            # PyTorch's CPU kernel is two to six times slower in bfloat16 than in float32.
            with torch.autocast("cpu", enabled=False):
                mixed = self._attend([tokens.float() for tokens in projected], mask)
        else:
            mixed = self._attend(projected, mask)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _attend(self, projected: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        query, key, value = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in projected
        )
        if mask is None and key.shape[2] == 2:
            return attend_to_two(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def attend_to_two(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``scaled_dot_product_attention`` with two keys: (..., Q, C), (..., 2, C) -> (..., Q, C).

    The softmax of two scores is the sigmoid of their difference. For short sequences the products
    of matrices cost more than what they compute.
    """
    first, second = key.split(1, dim=-2)
    scores = (query * (second - first)).sum(-1, keepdim=True) * query.shape[-1] ** -0.5
    one, other = value.split(1, dim=-2)
    return torch.lerp(one, other, scores.sigmoid())


class FeedForward(nn.Module):
    """Two linear layers with ReLU: (..., C) -> (..., C)."""

    def __init__(self, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        # In place it would cost the backward pass two copies.
        hidden = F.relu(self.fc1(tokens), inplace=not torch.is_grad_enabled())
        return self.fc2(hidden)


def sine_positions(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
    """Sine position encoding of a map (DETR's, normalised to 2 pi, temperature 10000).

    Returns:
        (H * W, C) float32, rows first; the first half of the channels encodes y, the second x.
    """
    half = channels // 2
    index = torch.arange(half, device=device)
    period = 10000 ** (2 * torch.div(index, 2, rounding_mode="floor") / half)

    def encode(size: int) -> Tensor:
        place = torch.arange(1, size + 1, dtype=torch.float32, device=device)
        angle = (place / (size + 1e-6) * 2 * math.pi)[:, None] / period
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=2).flatten(1)

    rows = encode(height)[:, None].expand(-1, width, -1)
    columns = encode(width)[None].expand(height, -1, -1)
    return torch.cat((rows, columns), dim=2).flatten(0, 1)
