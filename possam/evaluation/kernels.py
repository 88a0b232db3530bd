"""Compiled loops over label maps; :mod:`possam.evaluation.run_lengths` wraps them.

numba compiles each loop when it is first called and keeps the result beside this file (or in the
user's cache, where this folder cannot be written).
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True)
def _unfilter(kind: int, byte: int, left: int, above: int, corner: int) -> int:
    """Undo the PNG row filter ``kind`` (1 to 4) of one byte (PNG specification, section 9.2).

    Args:
        byte: as stored; left, above, corner: the same byte of the pixels to the left, above, and
            above to the left.
    """
    if kind == 1:
        guess = left
    elif kind == 2:
        guess = above
    elif kind == 3:
        guess = (left + above) // 2
    else:  # Paeth: whichever is nearest to left + above - corner
        to_left, to_above = abs(above - corner), abs(left - corner)
        to_corner = abs(left + above - 2 * corner)
        if to_left <= to_above and to_left <= to_corner:
            guess = left
        elif to_above <= to_corner:
            guess = above
        else:
            guess = corner
    return (byte + guess) & 255


@njit(cache=True)
def _next_nonzero(data: Array, words: Array, place: int, end: int) -> int:
    """Place of the first nonzero byte from ``place`` on, or ``end``; ``words``: 8 bytes each."""
    while place < end and place % 8:
        if data[place]:
            return place
        place += 1
    word = place // 8
    while word < end // 8 and words[word] == 0:
        word += 1
    place = max(place, 8 * word)
    while place < end and data[place] == 0:
        place += 1
    return place


@njit(cache=True)
def decode_rows(
    data: Array, words: Array, size: int, rows: Array, starts: Array, values: Array
) -> int:
    """Undo a PNG's row filters, and store a row's values only where they change.

    A filter guesses a pixel from its neighbours to the left, above, and above to the left, and
    stores the difference. In a label map nearly all differences are zero, and a pixel whose
    neighbours equal those of the pixel before it gets the same value: all these are skipped.

    Args:
        data: uint8, per row the number of its filter, 1 to 4, and W * ``size`` filtered bytes;
            words: the same bytes as uint64 (without the last few).
        size: bytes of a pixel, 1 to 3.
        rows (H+1,), starts, values (H*W,): written, see
            :class:`possam.evaluation.run_lengths.RunLengths`.

    Returns:
        The number of runs; -1 for a filter that PNG does not have.
    """
    height = len(rows) - 1
    width = len(starts) // height
    count = 0
    for y in range(height):
        first = y * (1 + size * width) + 1
        end = first + size * width
        kind = data[first - 1]
        if not 1 <= kind <= 4:
            return -1
        rows[y] = count
        # The run of the row above that covers x, and where it ends; above the first row is zero.
        run, last = (rows[y - 1], count) if y else (0, 0)
        above: Any = np.int64(values[run]) if y else 0
        bound = starts[run + 1] if run + 1 < last else width
        left: Any = 0
        corner: Any = 0
        x: Any = 0
        nonzero = -1
        while x < width:
            while bound <= x:
                run += 1
                above = np.int64(values[run])
                bound = starts[run + 1] if run + 1 < last else width
            place = first + size * x
            value: Any = 0
            difference: Any = 0
            for byte in range(size):
                here: Any = np.int64(data[place + byte])
                shift = 8 * byte
                neighbours = left >> shift & 255, above >> shift & 255, corner >> shift & 255
                value |= _unfilter(kind, here, *neighbours) << shift
                difference |= here
            if x == 0 or value != left:
                starts[count], values[count] = x, value
                count += 1
            # Settled: the next pixel's three neighbours equal each other, or those of this pixel.
            # Then, and always with filter 1, which reads only the pixel to the left, pixels
            # repeat until a difference is stored or the row above changes.
            settled = value == above or (difference == 0 and value == left and above == corner)
            left, corner = value, above
            x += 1
            if (settled or kind == 1) and x < width:
                if nonzero < x:
                    nonzero = (_next_nonzero(data, words, place + size, end) - first) // size
                x = nonzero if kind == 1 else min(nonzero, bound)
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
def count_pairs(
    rows_a: Array,
    starts_a: Array,
    values_a: Array,
    rows_b: Array,
    starts_b: Array,
    values_b: Array,
    width: int,
    keys: Array,
    pixels: Array,
) -> bool:
    """Count the pixels of each pair of values of two maps of equal size (runs a and b).

    Args:
        keys (uint64), pixels (int64): 2^n zeros each, written: a hash table with linear probing. An
            entry with pixels counts ``key = value a * 2^32 + value b``; one without is free.

    Returns:
        Whether the table was large enough; if not, its content is of no use.
    """
    mask, free = len(keys) - 1, len(keys) // 2
    for y in range(len(rows_a) - 1):
        a, b, x = rows_a[y], rows_b[y], 0
        while x < width:
            end_a = starts_a[a + 1] if a + 1 < rows_a[y + 1] else width
            end_b = starts_b[b + 1] if b + 1 < rows_b[y + 1] else width
            end = min(end_a, end_b)
            key = np.uint64(values_a[a]) << np.uint64(32) | np.uint64(values_b[b])
            # Multiplied by 2^64 over the golden ratio, neighbouring keys lie far apart.
            place = np.int64((key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)) & mask
            while pixels[place] and keys[place] != key:
                place = (place + 1) & mask
            if pixels[place] == 0:
                if free == 0:
                    return False
                free -= 1
                keys[place] = key
            pixels[place] += end - x
            x = end
            a += end_a == end
            b += end_b == end
    return True
