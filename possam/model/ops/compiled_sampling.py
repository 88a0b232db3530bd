"""Bilinear samples of deformable attention on a CPU, by compiled loops, with derivatives.

A sample is a weighted sum of four cells, so the output of a query, over all levels and points, is
one weighted sum of ``4 L P`` cells. Each cell is a row of channels, contiguous in memory, unlike in
the planes of ``grid_sample``, and nothing as large as the samples is ever written. A training step
of the mini scale takes a third longer with ``grid_sample``.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels per
head.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from possam.runtime.compiled_loops import importing_loops, share_out


@functools.cache
def _kernels() -> Any:
    """The compiled loops; imported when first needed, since importing numba takes half a second."""
    with importing_loops():
        from possam.model.ops import sampling_kernels
    return sampling_kernels


@torch.compiler.disable
def sample_sum(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """:func:`~possam.model.ops.deformable.sample_plain` of float32 or float64 on a CPU.

    The sums do not depend on the number of threads.
    """
    sizes, first = [], 0
    for height, width in shapes:
        sizes.append((height, width, first))
        first += height * width
    sides = values.new_tensor([(width, height) for height, width in shapes])
    centres = references[:, None] * sides - 0.5
    # With all cells of a head side by side, more of them share a line of the cache.
    by_head = values.transpose(1, 2)
    parts = [part.contiguous() for part in (by_head, offsets, weights, centres)]
    out: Tensor = _SampleSum.apply(*parts, torch.tensor(sizes))
    return out.flatten(2)


class _SampleSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        values, _, weights, *_ = inputs
        out = values.new_zeros((*weights.shape[:3], values.shape[-1]))
        _run(_kernels().forward, inputs, (out,))
        ctx.save_for_backward(*inputs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        values, offsets, weights, *_ = inputs = ctx.saved_tensors
        d_values = torch.zeros_like(values)
        d_offsets, d_weights = torch.empty_like(offsets), torch.empty_like(weights)
        gradients = (grad_output.contiguous(), d_values, d_offsets, d_weights)
        _run(_kernels().backward, inputs, gradients)
        return d_values, d_offsets, d_weights, None, None


def _run(kernel: Callable[..., None], inputs: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """Run a kernel over all heads of all images, a share of them in each of PyTorch's threads."""
    values, _, weights, *_ = inputs
    batch, heads, cells, channels = values.shape
    queries, points = weights.shape[1], weights.shape[4]
    sizes = inputs[-1].numpy()
    before, after = (
        [part.detach().reshape(-1).numpy() for part in parts] for parts in (inputs[:-1], others)
    )
    numbers = (queries, cells, heads, points, channels)
    share_out(batch * heads, kernel, *before, sizes, *after, *numbers)
