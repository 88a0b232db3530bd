"""Layers that several parts of the network share.

Shapes: B images, Q queries, N tokens, C channels, H W.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.attention import attend


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis, computed in the weights' precision.

    PyTorch's own, given bfloat16 on a CPU, adds up the gradients of weight and bias in bfloat16:
    with 50,000 terms of one sign, only a twentieth of the sum is left.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., C) -> (..., C), in the input's type."""
        return super().forward(input.to(self.weight.dtype)).to(input.dtype)


class LayerNorm2d(LayerNorm):
    """Layer normalisation over the channels of a (B, C, H, W) map, as in SAM and ViTDet."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def exchange_layer_norms(module: nn.Module) -> None:
    """Make every ``nn.LayerNorm`` inside another package's module a :class:`LayerNorm`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.LayerNorm:
                own = LayerNorm(child.normalized_shape, eps=child.eps)
                own.weight, own.bias = child.weight, child.bias
                setattr(parent, name, own)


class MLP(nn.Sequential):
    """``layers`` linear layers with ReLU between them: (..., C) -> (..., out)."""

    def __init__(self, channels: int, hidden: int, out: int, *, layers: int) -> None:
        widths = [channels, *[hidden] * (layers - 1), out]
        linears = [nn.Linear(*pair) for pair in pairwise(widths)]
        hidden_layers = [part for linear in linears[:-1] for part in (linear, nn.ReLU())]
        super().__init__(*hidden_layers, linears[-1])


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
        """(B, Q, C) queries, (B, N, C) keys and values -> (B, Q, C).

        ``allowed``: (B, Q, N) bool, True where a query may look, at least once per row; ``None``:
        everywhere.
        """
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = (tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tokens in projected)
        mixed = attend(*heads, allowed=None if allowed is None else allowed.unsqueeze(1))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Two linear layers with ReLU: (..., C) -> (..., C)."""

    def __init__(self, *, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(tokens)))


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
