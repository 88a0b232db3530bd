"""Sums and products of short rows as vector instructions, for compiled loops.

LLVM's vectoriser unrolls four times, so that a loop over 16 numbers runs one by one. These
functions, to be called from what numba compiles, say by themselves what one instruction does. They
work on ``8 * blocks`` numbers, all of one float type, that begin at unsigned places of flat arrays.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

WIDTH = 8
"""Numbers of a block."""

# Sums may be taken in any order; NaN and infinity stay what they are.
_FAST = ("reassoc", "contract", "nsz")
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

    def shuffle(self, first: Any, second: Any, numbers: Sequence[int]) -> Any:
        chosen = ir.Constant(ir.VectorType(_INDEX, len(numbers)), list(numbers))
        return self.builder.shuffle_vector(first, second, chosen)

    def add(self, first: Any, second: Any) -> Any:
        return self.builder.fadd(first, second, flags=_FAST)

    def multiply(self, first: Any, second: Any) -> Any:
        return self.builder.fmul(first, second, flags=_FAST)

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


def _gather(
    typing: Any, out: Any, to: Any, shares: Any, values: Any, places: Any, blocks: Any
) -> Any:
    signature = types.void(out, to, shares, values, places, blocks)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, to, shares, values, places, blocks = arguments
        kinds, rows = signature.args, _Blocks(context, builder, signature.args[0].dtype)
        weights = [rows.spread(share) for share in cgutils.unpack_tuple(builder, shares)]
        starts = cgutils.unpack_tuple(builder, places)
        with rows.each(blocks):
            total = None
            for weight, start in zip(weights, starts, strict=True):
                part = rows.multiply(weight, rows.load(kinds[3], values, start))
                total = part if total is None else rows.add(total, part)
            rows.increase(kinds[0], out, to, total)
        return context.get_dummy_value()

    return signature, generate


def _scatter(
    typing: Any, out: Any, places: Any, shares: Any, values: Any, at: Any, blocks: Any
) -> Any:
    signature = types.void(out, places, shares, values, at, blocks)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, places, shares, values, at, blocks = arguments
        kinds, rows = signature.args, _Blocks(context, builder, signature.args[0].dtype)
        weights = [rows.spread(share) for share in cgutils.unpack_tuple(builder, shares)]
        starts = cgutils.unpack_tuple(builder, places)
        with rows.each(blocks):
            row = rows.load(kinds[3], values, at)
            for weight, start in zip(weights, starts, strict=True):
                rows.increase(kinds[0], out, start, rows.multiply(weight, row))
        return context.get_dummy_value()

    return signature, generate


def _dots(typing: Any, values: Any, places: Any, others: Any, at: Any, blocks: Any) -> Any:
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


gather_rows: Callable[..., None] = intrinsic(_gather)
"""``(out, to, shares, values, places, blocks)``: add to a row of ``out`` the rows of ``values``
that begin at ``places``, each times its share; two tuples of one length.
"""
scatter_rows: Callable[..., None] = intrinsic(_scatter)
"""``(out, places, shares, values, at, blocks)``: add a row of ``values``, times a share, to each of
the rows of ``out``, one after another; they may be the same.
"""
dot_rows: Callable[..., Any] = intrinsic(_dots)
"""``(values, places, others, at, blocks)``: dot products of four rows with one of ``others``."""
