"""Compiled loops of deformable attention on a CPU; ``compiled_sampling`` wraps them.

numba compiles each loop when it is first called and keeps the result beside this file (or in the
user's cache, where this folder cannot be written). Arrays are flat, and places in them unsigned:
with signed ones numba would look for places counted from the end.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels a head.
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


@njit(cache=True, inline="always", fastmath=_FAST)
def _find(place: Any, side: int) -> Any:
    """The cell before a place along a side of the map, and how far behind it; -2 for a cell that,
    as the one behind it, lies outside the map (as NaN does).
    """
    cell = np.floor(place)
    return (np.int64(cell) if -1 <= cell < side else np.int64(-2)), place - cell


@njit(cache=True, inline="always", fastmath=_FAST)
def _shares(weight: Any, right: Any, below: Any) -> Any:
    """What the four cells around a sample weigh, row by row."""
    lower = weight * below
    upper = weight - lower
    b, d = upper * right, lower * right
    return upper - b, b, lower - d, d


@njit(cache=True, inline="always", fastmath=_FAST)
def _add(out: Array, to: Any, share: Any, values: Array, at: Any, channels: int) -> None:
    for channel in range(channels):
        i = _U(channel)
        out[to + i] += share * values[at + i]


@njit(cache=True, inline="always", fastmath=_FAST)
def _multiply(values: Array, at: Any, wanted: Array, to: Any, channels: int, start: Any) -> Any:
    """``start`` and the dot product of a cell and a sum's gradient."""
    product = start
    for channel in range(channels):
        i = _U(channel)
        product += wanted[to + i] * values[at + i]
    return product


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def forward(
    values: Array, offsets: Array, weights: Array, centres: Array, sizes: Array, out: Array,
    queries: int, cells: int, heads: int, points: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Weighted sums of samples of the heads ``first <= image * M + head < last``, into ``out``.

    Args:
        values: (B, N, M, D), flat as all but ``sizes``, floats of one type.
        offsets: (B, Q, M, L, P, 2) x, y in cells of the level; weights: (B, Q, M, L, P).
        centres: (Q, L, 2) x, y of the reference in cells, 0 in the middle of the first.
        sizes: (L, 3) int64 height, width, first cell of each level.
        out: (B, Q, M, D), zeros.
    """
    levels, step = len(sizes), heads * channels
    for part in range(first, last):
        image, head = part // heads, part % heads
        for query in range(queries):
            own = (image * queries + query) * heads + head
            to, sample = _U(own * channels), _U(own * levels * points)
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                start = ((image * cells + sizes[level, 2]) * heads + head) * channels
                centre = _U(2 * (query * levels + level))
                for _ in range(points):
                    x, y = _U(2) * sample, _U(2) * sample + _U(1)
                    column, right = _find(offsets[x] + centres[centre], width)
                    row, below = _find(offsets[y] + centres[centre + _U(1)], height)
                    a, b, c, d = _shares(weights[sample], right, below)
                    sample += _U(1)
                    at = start + (row * width + column) * step
                    under = at + width * step
                    if 0 <= row < height - 1 and 0 <= column < width - 1:
                        # All four at once: half of what follows, and most samples come here.
                        i, j, k, m = _U(at), _U(at + step), _U(under), _U(under + step)
                        for channel in range(channels):
                            n = _U(channel)
                            upper = a * values[i + n] + b * values[j + n]
                            out[to + n] += upper + (c * values[k + n] + d * values[m + n])
                        continue
                    before, behind = 0 <= column < width, 0 <= column + 1 < width
                    if 0 <= row < height:
                        if before:
                            _add(out, to, a, values, _U(at), channels)
                        if behind:
                            _add(out, to, b, values, _U(at + step), channels)
                    if 0 <= row + 1 < height:
                        if before:
                            _add(out, to, c, values, _U(under), channels)
                        if behind:
                            _add(out, to, d, values, _U(under + step), channels)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def backward(
    values: Array, offsets: Array, weights: Array, centres: Array, sizes: Array, wanted: Array,
    d_values: Array, d_offsets: Array, d_weights: Array,
    queries: int, cells: int, heads: int, points: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Derivatives of :func:`forward`, whose arguments these are, of the same heads.

    Args:
        wanted: (B, Q, M, D) gradient of the sums.
        d_values: as ``values``, zeros; d_offsets, d_weights: as ``offsets`` and ``weights``.
    """
    levels, step = len(sizes), heads * channels
    nothing = np.zeros(1, values.dtype)[0]
    for part in range(first, last):
        image, head = part // heads, part % heads
        for query in range(queries):
            own = (image * queries + query) * heads + head
            to, sample = _U(own * channels), _U(own * levels * points)
            for level in range(levels):
                height, width = sizes[level, 0], sizes[level, 1]
                start = ((image * cells + sizes[level, 2]) * heads + head) * channels
                centre = _U(2 * (query * levels + level))
                for _ in range(points):
                    x, y = _U(2) * sample, _U(2) * sample + _U(1)
                    column, right = _find(offsets[x] + centres[centre], width)
                    row, below = _find(offsets[y] + centres[centre + _U(1)], height)
                    weight = weights[sample]
                    shares = _shares(weight, right, below)
                    at = start + (row * width + column) * step
                    under = at + width * step
                    before, behind = 0 <= column < width, 0 <= column + 1 < width
                    # Products of the gradient with the four cells.
                    a = b = c = d = nothing
                    if 0 <= row < height:
                        if before:
                            a = _multiply(values, _U(at), wanted, to, channels, nothing)
                            _add(d_values, _U(at), shares[0], wanted, to, channels)
                        if behind:
                            b = _multiply(values, _U(at + step), wanted, to, channels, nothing)
                            _add(d_values, _U(at + step), shares[1], wanted, to, channels)
                    if 0 <= row + 1 < height:
                        if before:
                            c = _multiply(values, _U(under), wanted, to, channels, nothing)
                            _add(d_values, _U(under), shares[2], wanted, to, channels)
                        if behind:
                            d = _multiply(values, _U(under + step), wanted, to, channels, nothing)
                            _add(d_values, _U(under + step), shares[3], wanted, to, channels)
                    upper, lower = a + right * (b - a), c + right * (d - c)
                    d_weights[sample] = upper + below * (lower - upper)
                    d_offsets[x] = weight * ((b - a) + below * ((d - c) - (b - a)))
                    d_offsets[y] = weight * (lower - upper)
                    sample += _U(1)
