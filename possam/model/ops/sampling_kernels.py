"""Compiled loops of deformable attention on a CPU; ``compiled_sampling`` wraps them.

numba compiles each loop when it is first called and keeps the result beside this file (or in the
user's cache, where this folder cannot be written). Arrays are flat, and indices into them unsigned:
with signed ones numba would test for indices that count from the end.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels per
head.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

_U = np.uint64
# Sums over channels may be taken in any order, which lets them run in vectors; NaN and infinity
# stay what they are.
_FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, inline="always", fastmath=_FAST, error_model="numpy")
def _side(place: Any, size: int, nothing: Any, one: Any) -> Any:
    """Cells before and behind a place along a side of the map; their weights; 1 where they exist.

    A cell that does not exist is replaced by the other, with weight 0. Nothing branches here: many
    samples lie at a border, and which ones cannot be predicted.
    """
    cell = np.floor(place)
    behind, first = place - cell, np.int64(cell)
    has_first = one if first >= 0 else nothing
    has_second = one if first + 1 < size else nothing
    cells = max(first, 0), min(first + 1, size - 1)
    return cells, (has_first * (one - behind), has_second * behind), (has_first, has_second)


@njit(cache=True, inline="always", fastmath=_FAST, error_model="numpy")
def _locate(
    x: Any, y: Any, height: int, width: int, start: int, channels: int, nothing: Any, one: Any
) -> Any:
    """Where the four cells around a sample lie, row by row, and what :func:`_side` says of its
    column and its row.
    """
    columns, across, there = _side(x, width, nothing, one)
    rows, down, here = _side(y, height, nothing, one)
    upper, lower = start + rows[0] * width * channels, start + rows[1] * width * channels
    left, right = columns[0] * channels, columns[1] * channels
    places = _U(upper + left), _U(upper + right), _U(lower + left), _U(lower + right)
    return places, across, down, there, here


@njit(cache=True, inline="always", fastmath=_FAST)
def _shares(weight: Any, across: Any, down: Any) -> Any:
    """The weights of the four cells, row by row."""
    upper, lower = weight * down[0], weight * down[1]
    return upper * across[0], upper * across[1], lower * across[0], lower * across[1]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def forward(
    values: Array, offsets: Array, weights: Array, centres: Array, sizes: Array, out: Array,
    queries: int, cells: int, heads: int, points: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Weighted sums of samples of the heads ``first <= image * M + head < last``, into ``out``.

    Args:
        values: (B, M, N, D), flat as all but ``sizes``, floats of one type.
        offsets: (B, Q, M, L, P, 2) x, y in cells of the level; weights: (B, Q, M, L, P).
        centres: (Q, L, 2) x, y of the reference in cells, 0 in the middle of the first.
        sizes: (L, 3) int64 height, width, first cell of each level.
        out: (B, Q, M, D), zeros.
    """
    levels, kind = len(sizes), values.dtype.type
    nothing, one = kind(0), kind(1)
    for part in range(first, last):
        image, head = part // heads, part % heads
        for query in range(queries):
            own = (image * queries + query) * heads + head
            to, sample = _U(own * channels), _U(own * levels * points)
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                high, wide = kind(height), kind(width)
                start = ((image * heads + head) * cells + sizes[level, 2]) * channels
                centre = _U(2 * (query * levels + level))
                for _ in range(points):
                    x = offsets[_U(2) * sample] + centres[centre]
                    y = offsets[_U(2) * sample + _U(1)] + centres[centre + _U(1)]
                    weight = weights[sample]
                    sample += _U(1)
                    if not (-one < x < wide and -one < y < high):
                        continue  # outside, as NaN is
                    places, across, down, _, _ = _locate(
                        x, y, height, width, start, channels, nothing, one
                    )
                    shares = _shares(weight, across, down)
                    for channel in range(channels):
                        n = _U(channel)
                        out[to + n] += (
                            shares[0] * values[places[0] + n]
                            + shares[1] * values[places[1] + n]
                            + shares[2] * values[places[2] + n]
                            + shares[3] * values[places[3] + n]
                        )


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def backward(
    values: Array, offsets: Array, weights: Array, centres: Array, sizes: Array, grad_output: Array,
    d_values: Array, d_offsets: Array, d_weights: Array,
    queries: int, cells: int, heads: int, points: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Derivatives of :func:`forward`, whose arguments these are, of the same heads.

    Args:
        grad_output: (B, Q, M, D), gradient of the sums.
        d_values: as ``values``, zeros; d_offsets, d_weights: as ``offsets`` and ``weights``.
    """
    levels, kind = len(sizes), values.dtype.type
    nothing, one = kind(0), kind(1)
    for part in range(first, last):
        image, head = part // heads, part % heads
        for query in range(queries):
            own = (image * queries + query) * heads + head
            to, sample = _U(own * channels), _U(own * levels * points)
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                high, wide = kind(height), kind(width)
                start = ((image * heads + head) * cells + sizes[level, 2]) * channels
                centre = _U(2 * (query * levels + level))
                for _ in range(points):
                    own_x, own_y, own_weight = _U(2) * sample, _U(2) * sample + _U(1), sample
                    x = offsets[own_x] + centres[centre]
                    y = offsets[own_y] + centres[centre + _U(1)]
                    weight = weights[own_weight]
                    sample += _U(1)
                    if not (-one < x < wide and -one < y < high):
                        d_offsets[own_x] = d_offsets[own_y] = d_weights[own_weight] = nothing
                        continue
                    places, across, down, there, here = _locate(
                        x, y, height, width, start, channels, nothing, one
                    )
                    # Dot products of the four cells with the gradient.
                    a, b, c, d = nothing, nothing, nothing, nothing
                    for channel in range(channels):
                        n = _U(channel)
                        gradient = grad_output[to + n]
                        a += gradient * values[places[0] + n]
                        b += gradient * values[places[1] + n]
                        c += gradient * values[places[2] + n]
                        d += gradient * values[places[3] + n]
                    # One cell after another: at a border two of them are the same.
                    shares = _shares(weight, across, down)
                    for channel in range(channels):
                        n = _U(channel)
                        d_values[places[0] + n] += shares[0] * grad_output[to + n]
                        d_values[places[1] + n] += shares[1] * grad_output[to + n]
                        d_values[places[2] + n] += shares[2] * grad_output[to + n]
                        d_values[places[3] + n] += shares[3] * grad_output[to + n]
                    left, right = down[0] * a + down[1] * c, down[0] * b + down[1] * d
                    upper, lower = across[0] * a + across[1] * b, across[0] * c + across[1] * d
                    d_weights[own_weight] = across[0] * left + across[1] * right
                    d_offsets[own_x] = weight * (there[1] * right - there[0] * left)
                    d_offsets[own_y] = weight * (here[1] * lower - here[0] * upper)
