"""Layer and group normalisation, with a backward pass of their own on a CPU.

PyTorch's own (2.14) has two faults there: of layer normalisation in bfloat16 it adds up
the gradients of weight and bias in bfloat16, where 50,000 terms of one sign come to a twentieth of
their sum; and of group normalisation it is made for planes, not for channels that lie innermost.

Shapes: B images, N tokens, C channels, H W.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from possam.runtime.compiled_loops import importing_loops, share_out

_PLANES_BELOW = 1024
"""Cells of a map; smaller maps PyTorch normalises ten times faster as planes."""

_BLOCKS = 32
"""Blocks of rows that take as long as to start a thread."""


@functools.cache
def _kernels() -> Any:
    """The compiled loops, when they are first needed: importing numba takes half a second."""
    with importing_loops():
        from possam.model.ops import norm_kernels
    return norm_kernels


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the last axis, whose weight and bias get the gradients they have."""

    def forward(self, input: Tensor) -> Tensor:
        exact = input.device.type != "cpu" or input.dtype != torch.bfloat16
        if exact or torch.compiler.is_compiling():
            return super().forward(input)
        normal: Tensor = _LayerNormalise.apply(input, self.weight, self.bias, self.eps)
        return normal


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


class GroupNorm(nn.GroupNorm):
    """Group normalisation with Mask2Former's 32 groups, or fewer where they do not divide C."""

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        own = input.device.type == "cpu" and input.dtype in (torch.float32, torch.bfloat16)
        if own and not torch.compiler.is_compiling():
            normal: Tensor = _GroupNormalise.apply(
                input, self.weight, self.bias, self.num_groups, self.eps
            )
            return normal
        return super().forward(input)


def _flat(values: Tensor) -> Any:
    """Memory of a tensor as a flat array, bfloat16 as its bits."""
    values = values.detach()
    bits = values.view(torch.uint16) if values.dtype == torch.bfloat16 else values
    return bits.view(-1).numpy()


class _LayerNormalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        values, weight = input.contiguous(), weight.float()
        out, kernels, channels = torch.empty_like(values), _kernels(), values.shape[-1]
        rows = values.numel() // channels
        mean, rstd = (torch.empty(rows) for _ in range(2))
        arrays = [_flat(part) for part in (values, weight, bias.float(), out, mean, rstd)]
        share_out(
            -(-rows // kernels.BLOCK),
            kernels.layer_forward, *arrays, np.float32(eps), rows, channels, least=_BLOCKS,
        )  # fmt: skip
        ctx.save_for_backward(values, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        values, weight, mean, rstd = ctx.saved_tensors
        d_values, kernels, channels = torch.empty_like(values), _kernels(), values.shape[-1]
        blocks = -(-len(mean) // kernels.BLOCK)
        d_weight, d_bias = (torch.zeros(blocks, channels) for _ in range(2))
        wanted = gradient.to(values.dtype).contiguous()
        parts = (values, wanted, weight, mean, rstd, d_values, d_weight, d_bias)
        arrays = [_flat(part) for part in parts]
        share_out(blocks, kernels.layer_backward, *arrays, len(mean), channels, least=_BLOCKS)
        return d_values, d_weight.double().sum(0).float(), d_bias.double().sum(0).float(), None


class _GroupNormalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        maps = maps.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = maps.shape
        small = height * width < _PLANES_BELOW
        normal, mean, rstd = torch.native_group_norm(
            maps.contiguous() if small else maps,
            weight,
            bias,
            batch,
            channels,
            height * width,
            groups,
            eps,
        )
        normal = normal.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(maps, weight, mean, rstd)
        return normal

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        maps, weight, mean, rstd = ctx.saved_tensors
        (batch, channels, height, width), groups = maps.shape, mean.shape[1]
        gradient = gradient.to(maps.dtype).contiguous(memory_format=torch.channels_last)
        d_maps = torch.empty_like(maps)
        d_weight, d_bias = (torch.zeros(batch, channels, dtype=torch.float64) for _ in range(2))
        cells = (part.permute(0, 2, 3, 1) for part in (maps, gradient, d_maps))
        values, wanted, d_values = (_flat(part) for part in cells)
        arrays = [_flat(part.float()) for part in (weight, mean, rstd)]
        share_out(
            batch, _kernels().group_backward, values, wanted, *arrays, d_values,
            _flat(d_weight), _flat(d_bias), height * width, channels, groups,
        )  # fmt: skip
        return d_maps, d_weight.sum(0).to(weight.dtype), d_bias.sum(0).to(weight.dtype), None, None
