"""Bilinear samples of deformable attention as weighted sums of rows, for processors without a GPU.

A sample is a weighted sum of four cells, so what a query takes from all levels and points is one
weighted sum of ``4 L P`` cells. Kept as rows of channels these are contiguous in memory, which the
planes of ``grid_sample`` are not; and summing weighted rows is what ``embedding_bag`` does. A
margin of zeros around each map stands for everything outside it.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels a head.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _Places(NamedTuple):
    """Where samples fall: cells of the margined maps, and places between them.

    ``rows`` (B, Q, M, L, P) int32: row of the upper left cell; ``x``, ``y`` 0..1 within the cell;
    ``x_moves``, ``y_moves``: whether moving the sample changes it (not beyond the margin).
    """

    rows: Tensor
    x: Tensor
    y: Tensor
    x_moves: Tensor
    y_moves: Tensor


class RowSum(torch.autograd.Function):
    """(B, N, M, D), (B, Q, M, L, P, 2), (B, Q, M, L, P) -> (B, Q, M, D), contiguous.

    Values, offsets in cells of their level, weights; further arguments: reference points (Q, 2)
    x, y in 0..1 and the (H, W) of each level. Zero outside the maps.
    """

    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        offsets: Tensor,
        weights: Tensor,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        batch, count, heads = offsets.shape[:3]
        table = _margined(values, shapes)
        places = _place(offsets, references, shapes)
        index = _corner_rows(places.rows, shapes)
        corner_weights = _corner_weights(weights, places)
        bags = batch * count * heads
        out = F.embedding_bag(
            index.view(bags, -1),
            table.view(-1, table.shape[-1]),
            mode="sum",
            per_sample_weights=corner_weights.view(bags, -1),
        )
        ctx.save_for_backward(table, index, corner_weights, weights, *places[1:])
        ctx.shapes = tuple(shapes)
        return out.view(batch, count, heads, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        table, index, corner_weights, weights, x, y, x_moves, y_moves = ctx.saved_tensors
        bags = index[..., 0, 0, 0].numel()
        gradient = gradient.reshape(bags, -1)
        rows = table.view(-1, table.shape[-1])
        d_values = None
        if ctx.needs_input_grad[0]:
            d_table = _scatter(corner_weights, index, gradient, len(rows))
            d_values = _without_margin(d_table.view_as(table), ctx.shapes)
        corners = _products(gradient, rows, index.view(bags, -1)).view_as(corner_weights)
        a, b, c, d = corners.unbind(-1)  # upper left, upper right, lower left, lower right
        upper, lower = torch.lerp(a, b, x), torch.lerp(c, d, x)
        d_x = torch.lerp(b - a, d - c, y).mul_(weights).mul_(x_moves)
        d_y = (lower - upper).mul_(weights).mul_(y_moves)
        return d_values, torch.stack((d_x, d_y), -1), torch.lerp(upper, lower, y), None, None


def _margined(values: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, N, M, D) -> (B, N', M, D): a cell of zeros on every side of each map."""
    maps = values.split([height * width for height, width in shapes], dim=1)
    return torch.cat(
        [
            F.pad(cells.unflatten(1, shape), (0, 0, 0, 0, 1, 1, 1, 1)).flatten(1, 2)
            for cells, shape in zip(maps, shapes, strict=True)
        ],
        dim=1,
    )


def _without_margin(table: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The inverse of :func:`_margined`."""
    maps = table.split([(height + 2) * (width + 2) for height, width in shapes], dim=1)
    return torch.cat(
        [
            cells.unflatten(1, (height + 2, width + 2))[:, 1:-1, 1:-1].flatten(1, 2)
            for cells, (height, width) in zip(maps, shapes, strict=True)
        ],
        dim=1,
    )


def _place(offsets: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]) -> _Places:
    batch, _, heads = offsets.shape[:3]
    sides = offsets.new_tensor([(width, height) for height, width in shapes])  # (L, 2)
    centres = (references[:, None] * sides + 0.5)[:, None, :, None]  # in cells of margined maps
    lasts = sides[:, None] + 1
    parts = []
    for axis in (0, 1):
        last = lasts[..., axis]
        place = offsets[..., axis] + centres[..., axis]
        moves = (place >= 0) & (place < last)
        place = torch.minimum(place.clamp_(min=0), last)
        cell = torch.minimum(place.floor(), last - 1)
        parts.append((cell.int(), place.sub_(cell), moves))
    (column, x, x_moves), (row, y, y_moves) = parts
    widths = torch.tensor([width + 2 for _, width in shapes], dtype=torch.int32)
    sizes = [(height + 2) * (width + 2) for height, width in shapes]
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], dtype=torch.int32)
    cells = row.mul_(widths[:, None]).add_(column).add_(starts[:, None])
    head = torch.arange(heads, dtype=torch.int32)[:, None, None]
    image = torch.arange(batch, dtype=torch.int32)[:, None, None, None, None]
    rows = cells.mul_(heads).add_(head).add_(image * (sum(sizes) * heads))
    return _Places(rows, x, y, x_moves, y_moves)


def _corner_rows(rows: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, Q, M, L, P, 4): rows of the four cells around each sample."""
    heads = rows.shape[2]
    steps = [(0, 1, width + 2, width + 3) for _, width in shapes]
    return rows[..., None] + torch.tensor(steps, dtype=torch.int32).mul_(heads)[:, None]


def _corner_weights(weights: Tensor, places: _Places) -> Tensor:
    """(B, Q, M, L, P, 4): bilinear weights times attention weights."""
    out = weights.new_empty((*weights.shape, 4))
    lower = weights * places.y
    upper = weights - lower
    for half, first in ((upper, 0), (lower, 2)):
        torch.mul(half, places.x, out=out[..., first + 1])
        torch.sub(half, out[..., first + 1], out=out[..., first])
    return out


def _scatter(weights: Tensor, index: Tensor, gradient: Tensor, rows: int) -> Tensor:
    """(rows, D): each bag's gradient, weighted, added to each of its rows.

    It is a product with the transpose of the sparse matrix of weights, which has the same arrays.
    """
    bags = len(gradient)
    ends = torch.arange(0, index.numel() + 1, index.numel() // bags, dtype=torch.int32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSC tensor support is in beta")
        matrix = torch.sparse_csc_tensor(
            ends, index.view(-1), weights.view(-1), size=(rows, bags), check_invariants=False
        )
    return matrix @ gradient


def _products(gradient: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """(bags, entries): dot product of each bag's gradient with each of its rows."""
    bags, entries = index.shape
    offsets = torch.arange(0, index.numel(), entries, dtype=torch.int32)
    of_bag = torch.arange(bags, dtype=torch.int32).repeat_interleave(entries)
    found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        gradient, rows, index.reshape(-1), offsets, of_bag, 0, -1
    )
    return found
