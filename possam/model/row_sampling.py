"""Bilinear samples of deformable attention as weighted sums of rows: for a CPU, without gradients.

A sample is a weighted sum of four cells, so what a query takes from all levels and points is one
weighted sum of ``4 L P`` cells. Kept as rows of channels these are contiguous in memory, which the
planes of ``grid_sample`` are not; and summing weighted rows is what ``embedding_bag`` does. A
margin of zeros around each map stands for everything outside it. (Adding gradients to rows again is
slower than ``grid_sample``'s backward pass, so training does not come here.)

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class _Places(NamedTuple):
    """Where samples fall in the margined maps.

    ``rows`` (B, Q, M, L, P) int32: row of the upper left cell; ``x``, ``y``: 0..1 from there.
    """

    rows: Tensor
    x: Tensor
    y: Tensor


@torch.compiler.disable
@torch.no_grad()
def sum_rows(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the maps; carries no gradient.

    Args:
        values: (B, N, M, D).
        offsets: (B, Q, M, L, P, 2) x, y in cells of the level.
        weights: (B, Q, M, L, P).
        references: (Q, 2) x, y in 0..1.
        shapes: (H, W) of each level.

    Returns:
        (B, Q, M * D).
    """
    batch, count, heads = offsets.shape[:3]
    table = _margined(values, shapes)
    places = _place(offsets, references, shapes)
    bags = batch * count * heads
    out = F.embedding_bag(
        _corner_rows(places.rows, shapes).view(bags, -1),
        table.view(-1, table.shape[-1]),
        mode="sum",
        per_sample_weights=_corner_weights(weights, places).view(bags, -1),
    )
    return out.view(batch, count, -1)


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


def _place(offsets: Tensor, references: Tensor, shapes: Sequence[tuple[int, int]]) -> _Places:
    batch, _, heads = offsets.shape[:3]
    sides = offsets.new_tensor([(width, height) for height, width in shapes])  # (L, 2)
    centres = (references[:, None] * sides + 0.5)[:, None, :, None]  # in cells of margined maps
    lasts = sides[:, None] + 1
    parts = []
    for axis in (0, 1):
        last = lasts[..., axis]
        place = offsets[..., axis] + centres[..., axis]
        place = torch.minimum(place.clamp_(min=0), last)
        cell = torch.minimum(place.floor(), last - 1)
        parts.append((cell.int(), place.sub_(cell)))
    (column, x), (row, y) = parts
    widths = torch.tensor([width + 2 for _, width in shapes], dtype=torch.int32)
    sizes = [(height + 2) * (width + 2) for height, width in shapes]
    starts = torch.tensor([sum(sizes[:level]) for level in range(len(sizes))], dtype=torch.int32)
    cells = row.mul_(widths[:, None]).add_(column).add_(starts[:, None])
    head = torch.arange(heads, dtype=torch.int32)[:, None, None]
    image = torch.arange(batch, dtype=torch.int32)[:, None, None, None, None]
    rows = cells.mul_(heads).add_(head).add_(image * (sum(sizes) * heads))
    return _Places(rows, x, y)


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
