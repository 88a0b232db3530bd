"""Compiled loops over label maps and detections; :mod:`possam.evaluation.runs` wraps them.

numba compiles each loop when it is first called and keeps the result beside this file (or in the
user's cache, where this folder cannot be written).
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

_EVEN = np.uint32(0x00FF00FF)
_ODD = np.uint32(0xFF00FF00)
_BYTE = np.uint32(255)
_EVERY = np.uint64(0xFFFFFFFFFFFFFFFF)
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""Shifted left by 0 to 63 bits, it begins with six different bits every time."""


def _lowest_bytes() -> Array:
    """By the six bits that ``_DE_BRUIJN`` times a power of two begins with: the byte it lies in."""
    table = np.zeros(64, np.uint64)
    for bit in range(64):
        table[(int(_DE_BRUIJN) << bit) % (1 << 64) >> 58] = bit // 8
    return table


_LOWEST_BYTE = _lowest_bytes()


@njit(cache=True)
def _load(data: Array, place: int, size: int) -> np.uint32:
    """``size`` bytes as one number, the first byte lowest."""
    value = np.uint32(data[place])
    if size > 1:
        value |= np.uint32(data[place + 1]) << np.uint32(8)
    if size > 2:
        value |= np.uint32(data[place + 2]) << np.uint32(16)
    return value


@njit(cache=True)
def _add(a: np.uint32, b: np.uint32) -> np.uint32:
    """Sum byte by byte, modulo 256."""
    return (((a & _EVEN) + (b & _EVEN)) & _EVEN) | (((a & _ODD) + (b & _ODD)) & _ODD)


@njit(cache=True)
def _average(a: np.uint32, b: np.uint32) -> np.uint32:
    """Mean byte by byte, rounded down."""
    value = np.uint32(0)
    for shift in (np.uint32(0), np.uint32(8), np.uint32(16)):
        value |= ((((a >> shift) & _BYTE) + ((b >> shift) & _BYTE)) >> np.uint32(1)) << shift
    return value


@njit(cache=True)
def _paeth(a: np.uint32, b: np.uint32, c: np.uint32) -> np.uint32:
    """Of left, above and left above, byte by byte, the nearest to ``a + b - c``."""
    value = np.uint32(0)
    for shift in (np.uint32(0), np.uint32(8), np.uint32(16)):
        left = np.int32((a >> shift) & _BYTE)
        above = np.int32((b >> shift) & _BYTE)
        corner = np.int32((c >> shift) & _BYTE)
        to_left, to_above = abs(above - corner), abs(left - corner)
        to_corner = abs(left + above - 2 * corner)
        if to_left <= to_above and to_left <= to_corner:
            chosen = left
        elif to_above <= to_corner:
            chosen = above
        else:
            chosen = corner
        value |= np.uint32(chosen) << shift
    return value


@njit(cache=True)
def _next_nonzero(data: Array, words: Array, place: int, end: int) -> int:
    """The first byte from ``place`` on that is not zero, or ``end``."""
    here = np.uint64(place)
    word, last = here >> np.uint64(3), np.uint64(end) >> np.uint64(3)
    if word < last:
        found = words[word] & (_EVERY << ((here & np.uint64(7)) << np.uint64(3)))
        if not found:
            word += np.uint64(1)
            while word + np.uint64(4) <= last and not (
                words[word]
                | words[word + np.uint64(1)]
                | words[word + np.uint64(2)]
                | words[word + np.uint64(3)]
            ):
                word += np.uint64(4)
            while word < last and not words[word]:
                word += np.uint64(1)
            if word < last:
                found = words[word]
        if found:
            lowest = found & (~found + np.uint64(1))
            byte = _LOWEST_BYTE[(lowest * _DE_BRUIJN) >> np.uint64(58)]
            reached: Any = np.int64((word << np.uint64(3)) + byte)
            return reached
        here = word << np.uint64(3)
    reached = np.int64(here)
    while reached < end and data[reached] == 0:
        reached += 1
    return reached


@njit(cache=True)
def _next_change(data: Array, words: Array, place: int, end: int, size: int) -> int:
    """The first byte from ``place`` on that differs from the one ``size`` before it, or ``end``."""
    up, down = np.uint64(8 * size), np.uint64(64 - 8 * size)
    while place < end and place & 7:
        if data[place] != data[place - size]:
            return place
        place += 1
    word, last = np.uint64(place >> 3), np.uint64(end >> 3)
    if place >= 8:
        before = words[word - np.uint64(1)]
        while word + np.uint64(4) <= last:
            one, two = words[word], words[word + np.uint64(1)]
            three, four = words[word + np.uint64(2)], words[word + np.uint64(3)]
            if (
                (one ^ ((one << up) | (before >> down)))
                | (two ^ ((two << up) | (one >> down)))
                | (three ^ ((three << up) | (two >> down)))
                | (four ^ ((four << up) | (three >> down)))
            ):
                break
            before = four
            word += np.uint64(4)
        while word < last:
            here = words[word]
            if here != ((here << up) | (before >> down)):
                break
            before = here
            word += np.uint64(1)
        reached: Any = np.int64(word) << 3
    place = max(place, reached)
    while place < end and data[place] == data[place - size]:
        place += 1
    return place


@njit(cache=True)
def _pixel(place: int, size: int) -> int:
    """``place // size``, without a division."""
    if size == 3:
        return place // 3
    return place >> 1 if size == 2 else place


@njit(cache=True)
def decode_rows(
    data: Array,
    words: Array,
    height: int,
    width: int,
    size: int,
    rows: Array,
    starts: Array,
    values: Array,
) -> int:
    """Undo a PNG's row filters, and keep only where a row changes its value.

    Nothing happens where the filtered bytes are zero and the row above is flat, which is almost
    everywhere in a label map: only the other pixels are looked at.

    Args:
        data: the filtered rows, uint8; words: the same as uint64 (the last few bytes left out).
        size: bytes of a pixel, 1 to 3.
        rows (H+1,), starts, values (H*W,): written; see :class:`possam.evaluation.runs.Runs`.

    Returns:
        The number of runs; -1 for a filter that PNG does not have.
    """
    count = 0
    place = 0
    for y in range(height):
        kind = data[place]
        if kind > 4:
            return -1
        first = place + 1
        end = first + size * width
        run = rows[y - 1] if y else 0
        last = count
        rows[y] = count
        above = values[run] if y else np.uint32(0)
        bound = starts[run + 1] if run + 1 < last else width
        left = corner = np.uint32(0)
        nonzero = -1
        x = 0
        while x < width:
            corner = above
            while bound <= x:
                run += 1
                above = values[run]
                bound = starts[run + 1] if run + 1 < last else width
            if x == 0:
                corner = np.uint32(0)
            here = _load(data, first + size * x, size)
            if kind == 0:
                value = here
            elif kind == 1:
                value = _add(left, here)
            elif kind == 2:
                value = _add(above, here)
            elif kind == 3:
                value = _add(_average(left, above), here)
            elif above == corner:
                value = _add(left, here)
            elif left == corner:
                value = _add(above, here)
            else:
                value = _add(_paeth(left, above, corner), here)
            if x == 0 or value != left:
                starts[count], values[count] = x, value
                count += 1
            left = value
            x += 1
            if kind == 0:
                x = _pixel(_next_change(data, words, first + size * x, end, size) - first, size)
                continue
            if (kind == 2 and here) or (kind == 3 and value != above):
                continue
            if nonzero < x:
                nonzero = _pixel(_next_nonzero(data, words, first + size * x, end) - first, size)
            if kind == 1:
                x = nonzero
                continue
            # Where the row above changes, this one does, too, unless it changed before. (The Paeth
            # filter goes that way if the two were the same.)
            while bound < nonzero and (kind == 2 or (kind == 4 and left == above)):
                run += 1
                above = values[run]
                if above != left:
                    starts[count], values[count] = bound, above
                    count += 1
                    left = above
                bound = starts[run + 1] if run + 1 < last else width
            x = min(nonzero, bound)
        place = end
    rows[height] = count
    return count


@njit(cache=True)
def array_rows(pixels: Array, rows: Array, starts: Array, values: Array) -> int:
    """The runs of an array (H,W); other arguments and result as :func:`decode_rows`."""
    count = 0
    height, width = pixels.shape
    for y in range(height):
        rows[y] = count
        for x in range(width):
            value = np.uint32(pixels[y, x])
            if x == 0 or value != values[count - 1]:
                starts[count], values[count] = x, value
                count += 1
    rows[height] = count
    return count


@njit(cache=True)
def join_rows(
    rows_a: Array,
    starts_a: Array,
    values_a: Array,
    rows_b: Array,
    starts_b: Array,
    values_b: Array,
    width: int,
    keys: Array,
    pixels: Array,
) -> int:
    """Where two maps of equal size (runs a and b) both stay the same.

    Args:
        keys, pixels (at least runs of a plus runs of b): written, ``value a * 2^32 + value b``
            uint64 of each place, and its pixels int64.

    Returns:
        How many places there are.
    """
    one, shift = np.uint64(1), np.uint64(32)
    count = 0
    for y in range(len(rows_a) - 1):
        a, end_a = np.uint64(rows_a[y]), np.uint64(rows_a[y + 1])
        b, end_b = np.uint64(rows_b[y]), np.uint64(rows_b[y + 1])
        x = 0
        while x < width:
            bound_a = starts_a[a + one] if a + one < end_a else width
            bound_b = starts_b[b + one] if b + one < end_b else width
            bound = min(bound_a, bound_b)
            keys[count] = (np.uint64(values_a[a]) << shift) | np.uint64(values_b[b])
            pixels[count] = bound - x
            count += 1
            x = bound
            a += np.uint64(bound_a == bound)
            b += np.uint64(bound_b == bound)
    return count


@njit(cache=True)
def tally(keys: Array, pixels: Array, table_keys: Array, table_pixels: Array) -> bool:
    """Sum ``pixels`` (N,) int64 of equal ``keys`` (N,) uint64.

    Args:
        table_keys, table_pixels: of 2^n zeros, written: a hash table. Free where pixels are 0.

    Returns:
        Whether the table was large enough; if not, what it holds is of no use.
    """
    # All indices are unsigned: mixed with signed ones, numba would compute in floating point.
    one, shift, golden = np.uint64(1), np.uint64(40), np.uint64(0x9E3779B97F4A7C15)
    mask = np.uint64(len(table_keys) - 1)
    free = len(table_keys) // 2
    for index in range(len(keys)):
        key = keys[index]
        place = ((key * golden) >> shift) & mask
        while table_pixels[place] and table_keys[place] != key:
            place = (place + one) & mask
        if table_pixels[place] == 0:
            if free == 0:
                return False
            free -= 1
            table_keys[place] = key
        table_pixels[place] += pixels[index]
    return True
