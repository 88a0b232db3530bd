"""Bilinear samples of deformable attention on CUDA: one Triton kernel forward, one backward.

Each program computes one block of queries, of one head of one image, over all levels and points, so
that nothing as large as the samples is ever written. Where several samples touch a cell, its
gradient is summed atomically, in no fixed order, as by PyTorch's own ``grid_sample``.

Importing this module imports Triton, which exists only on Linux.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels per
head.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_BLOCK = 32
"""Queries per program."""


@triton.jit
def _read_cells(values, row, column, height, width, step, lanes, kept):
    """Cells (BLOCK, LANES) of a map, zero outside it; their places; and which lie inside."""
    inside = kept & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    places = ((row * width + column) * step)[:, None] + lanes[0][None, :]
    mask = inside[:, None] & lanes[1][None, :]
    return tl.load(values + places, mask=mask, other=0.0), places, mask


@triton.jit
def _find(offsets, centre, side, kept):
    """Along one side of the map: the cell before each sample (BLOCK,), its distance (BLOCK, 1)."""
    place = tl.load(offsets, mask=kept, other=0.0) + centre * side - 0.5
    # Everything beyond the map is zero, however far away.
    place = tl.minimum(tl.maximum(place, -2.0), side + 1.0)
    cell = tl.floor(place)
    return cell.to(tl.int32), (place - cell)[:, None]


@triton.jit
def _queries(references, queries, heads, BLOCK: tl.constexpr):
    """This program's image and head, which of its queries exist (BLOCK,), their rows in (B, Q, M),
    and x and y of their references.
    """
    head = tl.program_id(1) % heads
    image = (tl.program_id(1) // heads).to(tl.int64)
    query = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kept = query < queries
    own = (image * queries + query) * heads + head
    centre_x = tl.load(references + 2 * query, mask=kept, other=0.0)
    centre_y = tl.load(references + 2 * query + 1, mask=kept, other=0.0)
    return image, head, kept, own, (centre_x, centre_y)


@triton.jit
def _level(sizes, level, image, cells):
    """Height and width of a level's map, and its first cell in (B, N)."""
    height = tl.load(sizes + 3 * level)
    width = tl.load(sizes + 3 * level + 1)
    return height, width, image * cells + tl.load(sizes + 3 * level + 2)


@triton.jit
def _read(maps, offsets, weights, sample, centres, height, width, step, lanes, kept):
    """One sample per query: its weight (BLOCK,), its distances in x and y (BLOCK, 1) from the cells
    before it, and the four cells around it, row by row, as :func:`_read_cells` gives them.
    """
    weight = tl.load(weights + sample, mask=kept, other=0.0)
    column, right = _find(offsets + 2 * sample, centres[0], width, kept)
    row, below = _find(offsets + 2 * sample + 1, centres[1], height, kept)
    a = _read_cells(maps, row, column, height, width, step, lanes, kept)
    b = _read_cells(maps, row, column + 1, height, width, step, lanes, kept)
    c = _read_cells(maps, row + 1, column, height, width, step, lanes, kept)
    d = _read_cells(maps, row + 1, column + 1, height, width, step, lanes, kept)
    return weight, right, below, a, b, c, d


@triton.jit
def _forward(
    values, offsets, weights, references, sizes, out,
    queries, cells, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    image, head, kept, own, centres = _queries(references, queries, heads, BLOCK)
    lane = tl.arange(0, LANES)
    lanes = (lane, lane < channels)
    step = heads * channels
    total = tl.zeros((BLOCK, LANES), dtype=tl.float32)
    for level in range(LEVELS):
        height, width, first = _level(sizes, level, image, cells)
        maps = values + first * step + head * channels
        for point in range(POINTS):
            sample = own * (LEVELS * POINTS) + level * POINTS + point
            weight, right, below, a, b, c, d = _read(
                maps, offsets, weights, sample, centres, height, width, step, lanes, kept
            )
            upper = a[0] + right * (b[0] - a[0])
            lower = c[0] + right * (d[0] - c[0])
            total += weight[:, None] * (upper + below * (lower - upper))
    places = own[:, None] * channels + lane[None, :]
    tl.store(out + places, total, mask=kept[:, None] & lanes[1][None, :])


@triton.jit
def _backward(
    values, offsets, weights, references, sizes, d_out,
    d_values, d_offsets, d_weights,
    queries, cells, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, BLOCK: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    image, head, kept, own, centres = _queries(references, queries, heads, BLOCK)
    lane = tl.arange(0, LANES)
    lanes = (lane, lane < channels)
    step = heads * channels
    places = own[:, None] * channels + lane[None, :]
    grad_output = tl.load(d_out + places, mask=kept[:, None] & lanes[1][None, :], other=0.0)
    for level in range(LEVELS):
        height, width, first = _level(sizes, level, image, cells)
        start = first * step + head * channels
        maps = values + start
        d_maps = d_values + start
        for point in range(POINTS):
            sample = own * (LEVELS * POINTS) + level * POINTS + point
            weight, right, below, a, b, c, d = _read(
                maps, offsets, weights, sample, centres, height, width, step, lanes, kept
            )
            upper = a[0] + right * (b[0] - a[0])
            lower = c[0] + right * (d[0] - c[0])
            slope_x = (1 - below) * (b[0] - a[0]) + below * (d[0] - c[0])
            to_weight = tl.sum(grad_output * (upper + below * (lower - upper)), axis=1)
            to_x = weight * tl.sum(grad_output * slope_x, axis=1)
            to_y = weight * tl.sum(grad_output * (lower - upper), axis=1)
            tl.store(d_weights + sample, to_weight, mask=kept)
            tl.store(d_offsets + 2 * sample, to_x, mask=kept)
            tl.store(d_offsets + 2 * sample + 1, to_y, mask=kept)
            share = weight[:, None] * grad_output
            tl.atomic_add(d_maps + a[1], share * (1 - right) * (1 - below), mask=a[2])
            tl.atomic_add(d_maps + b[1], share * right * (1 - below), mask=b[2])
            tl.atomic_add(d_maps + c[1], share * (1 - right) * below, mask=c[2])
            tl.atomic_add(d_maps + d[1], share * right * below, mask=d[2])


class _SampleSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        values, _, weights, *_ = inputs
        out = values.new_empty((*weights.shape[:3], values.shape[-1]))
        _launch(_forward, inputs, (out,))
        ctx.save_for_backward(*inputs)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        values, offsets, weights, _, _ = inputs = ctx.saved_tensors
        d_values = torch.zeros_like(values)
        d_offsets, d_weights = torch.empty_like(offsets), torch.empty_like(weights)
        _launch(_backward, inputs, (grad_output.contiguous(), d_values, d_offsets, d_weights))
        return d_values, d_offsets, d_weights, None, None


def _launch(kernel: Any, inputs: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> None:
    values, _, weights = inputs[:3]
    batch, cells, heads, channels = values.shape
    queries, levels, points = weights.shape[1], *weights.shape[3:]
    kernel[(triton.cdiv(queries, _BLOCK), batch * heads)](
        *inputs, *others, queries, cells, heads, channels,
        LEVELS=levels, POINTS=points, BLOCK=_BLOCK, LANES=triton.next_power_of_2(channels),
    )  # fmt: skip


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is kept in a training must not come from an evaluation
def _sizes(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """(L, 3) int32 on ``device``: height, width and first cell of each level.

    Kept by shape: the host waits for each copy to the device, and every layer needs this one.
    """
    first, sizes = 0, []
    for height, width in shapes:
        sizes.append((height, width, first))
        first += height * width
    return torch.tensor(sizes, dtype=torch.int32, device=device)


@torch.compiler.disable
def sample_sum(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """:func:`~possam.model.ops.deformable.sample_plain` of float32 on CUDA."""
    table = _sizes(tuple(shapes), values.device)
    parts = [part.contiguous() for part in (values, offsets, weights, references)]
    out: Tensor = _SampleSum.apply(*parts, table)
    return out.flatten(2)


def try_out(device: torch.device) -> None:
    """Compile and run both kernels on a map of one cell; raises what Triton or CUDA raises."""
    one = torch.ones(1, 1, 1, 1, device=device, requires_grad=True)
    centre = torch.full((1, 2), 0.5, device=device)
    offsets = torch.zeros(1, 1, 1, 1, 1, 2, device=device, requires_grad=True)
    weights = torch.ones(1, 1, 1, 1, 1, device=device, requires_grad=True)
    out = sample_sum(one, offsets, weights, references=centre, shapes=[(1, 1)])
    out.sum().backward()
    if not (out.item() == 1 and one.grad is not None and one.grad.item() == 1):
        raise RuntimeError("a sample in the middle of a cell is not the cell")
