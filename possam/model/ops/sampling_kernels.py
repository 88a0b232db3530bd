"""Compiled loops of deformable attention on a CPU; ``compiled_sampling`` wraps them.

numba compiles each loop when it is first called and keeps the result beside this file (or in the
user's cache, where this folder cannot be written). Arrays are flat, and places in them unsigned:
with signed ones numba would look for places counted from the end.

LLVM's vectoriser unrolls four times, so that a loop over the 16 channels of a small head would run
one by one. Rows are therefore added and multiplied by functions that say what one instruction does,
eight numbers at a time. (They are in this file since numba compiles anew when this file changes,
whatever it imports.)

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels a head.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

Array = NDArray[Any]

WIDTH = 8
"""Numbers that one vector instruction works on."""

_U = np.uint64
# Sums over channels may be taken in any order, which lets them run in vectors; NaN and infinity
# stay what they are.
_FAST = {"reassoc", "contract", "nsz"}
_INDEX = ir.IntType(32)


class _Blocks:
    """Emits operations on blocks of arrays."""

    def __init__(self, context: Any, builder: Any, kind: Any) -> None:
        element = context.get_value_type(kind)
        self.context, self.builder = context, builder
        self.vector = ir.VectorType(element, WIDTH)
        self.align = context.get_abi_sizeof(element)
        self.block: Any = None

    @contextmanager
    def each(self, blocks: Any) -> Iterator[None]:
        """A loop; what is emitted within it concerns one block."""
        with cgutils.for_range(self.builder, blocks) as loop:
            self.block = loop.index
            yield

    def spread(self, number: Any) -> Any:
        """A vector of one number."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, number, ir.Constant(_INDEX, 0))
        return self.shuffle(first, nothing, [0] * WIDTH)

    def weigh(self, shares: Any, places: Any) -> list[tuple[Any, Any]]:
        """Shares as vectors, each with its place."""
        pairs = (cgutils.unpack_tuple(self.builder, part) for part in (shares, places))
        return [(self.spread(share), place) for share, place in zip(*pairs, strict=True)]

    def shuffle(self, first: Any, second: Any, numbers: Sequence[int]) -> Any:
        chosen = ir.Constant(ir.VectorType(_INDEX, len(numbers)), list(numbers))
        return self.builder.shuffle_vector(first, second, chosen)

    def add(self, first: Any, second: Any) -> Any:
        return self.builder.fadd(first, second, flags=sorted(_FAST))

    def multiply(self, first: Any, second: Any) -> Any:
        return self.builder.fmul(first, second, flags=sorted(_FAST))

    def _pointer(self, kind: Any, array: Any, start: Any) -> Any:
        data = make_array(kind)(self.context, self.builder, value=array).data
        offset = self.builder.mul(self.block, ir.Constant(self.block.type, WIDTH))
        element = self.builder.gep(data, [self.builder.add(start, offset)])
        return self.builder.bitcast(element, self.vector.as_pointer())

    def load(self, kind: Any, array: Any, start: Any) -> Any:
        return self.builder.load(self._pointer(kind, array, start), align=self.align)

    def increase(self, kind: Any, array: Any, start: Any, values: Any) -> None:
        pointer = self._pointer(kind, array, start)
        total = self.add(self.builder.load(pointer, align=self.align), values)
        self.builder.store(total, pointer, align=self.align)

    def sums(self, vectors: Sequence[Any]) -> list[Any]:
        """Sums over each of four vectors: halves first, then all four together."""
        halves = [
            self.add(self.shuffle(v, v, range(4)), self.shuffle(v, v, range(4, 8))) for v in vectors
        ]
        pairs = [
            self.add(self.shuffle(a, b, (0, 1, 4, 5)), self.shuffle(a, b, (2, 3, 6, 7)))
            for a, b in (halves[:2], halves[2:])
        ]
        first, second = pairs
        total = self.add(
            self.shuffle(first, second, (0, 2, 4, 6)), self.shuffle(first, second, (1, 3, 5, 7))
        )
        return [self.builder.extract_element(total, ir.Constant(_INDEX, n)) for n in range(4)]


def _gather_code(
    typing: Any, out: Any, to: Any, shares: Any, values: Any, places: Any, blocks: Any
) -> Any:
    signature = types.void(out, to, shares, values, places, blocks)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, to, shares, values, places, blocks = arguments
        kinds, rows = signature.args, _Blocks(context, builder, signature.args[0].dtype)
        weighted = rows.weigh(shares, places)
        with rows.each(blocks):
            total = None
            for weight, start in weighted:
                part = rows.multiply(weight, rows.load(kinds[3], values, start))
                total = part if total is None else rows.add(total, part)
            rows.increase(kinds[0], out, to, total)
        return context.get_dummy_value()

    return signature, generate


def _scatter_code(
    typing: Any, out: Any, places: Any, shares: Any, values: Any, at: Any, blocks: Any
) -> Any:
    signature = types.void(out, places, shares, values, at, blocks)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, places, shares, values, at, blocks = arguments
        kinds, rows = signature.args, _Blocks(context, builder, signature.args[0].dtype)
        weighted = rows.weigh(shares, places)
        with rows.each(blocks):
            row = rows.load(kinds[3], values, at)
            for weight, start in weighted:
                rows.increase(kinds[0], out, start, rows.multiply(weight, row))
        return context.get_dummy_value()

    return signature, generate


def _dots_code(typing: Any, values: Any, places: Any, others: Any, at: Any, blocks: Any) -> Any:
    signature = types.UniTuple(values.dtype, 4)(values, places, others, at, blocks)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, places, others, at, blocks = arguments
        kinds, rows = signature.args, _Blocks(context, builder, signature.args[0].dtype)
        zero = ir.Constant(rows.vector, [0.0] * WIDTH)
        totals = [cgutils.alloca_once_value(builder, zero) for _ in range(4)]
        for total in totals:
            builder.store(zero, total)  # the lines above run once, outside of the caller's loops
        starts = cgutils.unpack_tuple(builder, places)
        with rows.each(blocks):
            row = rows.load(kinds[2], others, at)
            for total, start in zip(totals, starts, strict=True):
                product = rows.multiply(rows.load(kinds[0], values, start), row)
                builder.store(rows.add(builder.load(total), product), total)
        sums = rows.sums([builder.load(total) for total in totals])
        return context.make_tuple(builder, signature.return_type, sums)

    return signature, generate


gather_rows: Callable[..., None] = intrinsic(_gather_code)
"""``(out, to, shares, values, places, blocks)``: add to a row of ``out`` the rows of ``values``
that begin at ``places``, each times its share; two tuples of one length.
"""
scatter_rows: Callable[..., None] = intrinsic(_scatter_code)
"""``(out, places, shares, values, at, blocks)``: add a row of ``values``, times a share, to each of
the rows of ``out``, one after another; they may be the same.
"""
dot_rows: Callable[..., Any] = intrinsic(_dots_code)
"""``(values, places, others, at, blocks)``: dot products of four rows with one of ``others``."""


@njit(cache=True, inline="always", fastmath=_FAST, error_model="numpy")
def _side(place: Any, size: int, nothing: Any, one: Any) -> Any:
    """Cells before and behind a place along a side of the map; their weights; 1 where they exist.

    One that does not is replaced by the other, with no weight. Nothing branches here: many samples
    lie at a border, and which do cannot be foretold.
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
    """What the four cells weigh, row by row."""
    upper, lower = weight * down[0], weight * down[1]
    return upper * across[0], upper * across[1], lower * across[0], lower * across[1]


@njit(cache=True, inline="always", fastmath=_FAST)
def _gather(out: Array, to: Any, shares: Any, values: Array, places: Any, channels: int) -> None:
    """Add the weighted sum of four cells."""
    blocks = channels // WIDTH
    gather_rows(out, to, shares, values, places, _U(blocks))
    for channel in range(WIDTH * blocks, channels):
        n = _U(channel)
        upper = shares[0] * values[places[0] + n] + shares[1] * values[places[1] + n]
        lower = shares[2] * values[places[2] + n] + shares[3] * values[places[3] + n]
        out[to + n] += upper + lower


@njit(cache=True, inline="always", fastmath=_FAST)
def _scatter(out: Array, places: Any, shares: Any, values: Array, at: Any, channels: int) -> None:
    """Add weighted values to each of four cells, one after another: they may be the same."""
    blocks = channels // WIDTH
    scatter_rows(out, places, shares, values, at, _U(blocks))
    for channel in range(WIDTH * blocks, channels):
        n = _U(channel)
        out[places[0] + n] += shares[0] * values[at + n]
        out[places[1] + n] += shares[1] * values[at + n]
        out[places[2] + n] += shares[2] * values[at + n]
        out[places[3] + n] += shares[3] * values[at + n]


@njit(cache=True, inline="always", fastmath=_FAST)
def _multiply(values: Array, places: Any, wanted: Array, to: Any, channels: int) -> Any:
    """Dot products of the four cells with a sum's gradient."""
    blocks = channels // WIDTH
    a, b, c, d = dot_rows(values, places, wanted, to, _U(blocks))
    for channel in range(WIDTH * blocks, channels):
        n = _U(channel)
        a += wanted[to + n] * values[places[0] + n]
        b += wanted[to + n] * values[places[1] + n]
        c += wanted[to + n] * values[places[2] + n]
        d += wanted[to + n] * values[places[3] + n]
    return a, b, c, d


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
                    _gather(out, to, shares, values, places, channels)


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
                    a, b, c, d = _multiply(values, places, wanted, to, channels)
                    shares = _shares(weight, across, down)
                    _scatter(d_values, places, shares, wanted, to, channels)
                    left, right = down[0] * a + down[1] * c, down[0] * b + down[1] * d
                    upper, lower = across[0] * a + across[1] * b, across[0] * c + across[1] * d
                    d_weights[own_weight] = across[0] * left + across[1] * right
                    d_offsets[own_x] = weight * (there[1] * right - there[0] * left)
                    d_offsets[own_y] = weight * (here[1] * lower - here[0] * upper)
