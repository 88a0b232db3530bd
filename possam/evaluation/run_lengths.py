"""Label maps as run lengths, read from PNGs without building the pixels.

A run here is a stretch of equal pixels in one row. A map has a few thousand runs and a few hundred
thousand pixels, and pixels can be counted run by run. An inflated PNG is mostly zeros too, so that
even undoing its row filters looks at few pixels (:mod:`possam.evaluation.kernels`).
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from possam.datasets.pixels import GREY, RGB, InflatedMap, encode_map, inflate_map
from possam.runtime.compiled_loops import importing_loops

_TABLE = 1024
"""Entries of the first hash table: more than twice the pairs of most images."""


class RunLengths(NamedTuple):
    """R runs of a map (H,W); every row begins with a new one.

    Attributes:
        rows (H+1,) int64: the first run of each row, and R.
        starts (R,) int32: column where a run begins.
        values (R,) uint32: the value of its pixels.
        width: W.
        bits: bits per stored value (24 in a panoptic PNG).
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int32]
    values: NDArray[np.uint32]
    width: int
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(H,W)."""
        return len(self.rows) - 1, self.width


class SharedPixels(NamedTuple):
    """P pairs of values that share pixels, ascending: first, second, pixels, each (P,) int64."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    pixels: NDArray[np.int64]


@functools.cache
def _kernels() -> Any:
    """The compiled loops, imported at their first use: importing numba takes half a second.

    Raises:
        PossamError: no folder to keep the compiled loops in.
    """
    with importing_loops():
        from possam.evaluation import kernels
    return kernels


def _empty(height: int, width: int) -> tuple[Any, Any, Any]:
    # As many runs as pixels: untouched memory costs nothing.
    return (
        np.empty(height + 1, np.int64),
        np.empty(height * width, np.int32),
        np.empty(height * width, np.uint32),
    )


def encode_array(pixels: NDArray[np.integer]) -> RunLengths:
    """The runs of an array (H,W) of whole numbers, modulo 2^32."""
    height, width = pixels.shape
    rows, starts, values = _empty(height, width)
    same = np.ascontiguousarray(pixels.astype(np.uint32))
    count = _kernels().array_rows(same, rows, starts, values)
    return RunLengths(rows, starts[:count], values[:count], width, 8 * pixels.dtype.itemsize)


def encode_file(
    path: Path, *, colour: bool, size: tuple[int, int] | None = None
) -> RunLengths | None:
    """The runs of a valid, plain PNG; None for anything else, which other readers handle.

    Args:
        colour: 8-bit RGB, with values R + 256 G + 65536 B; else 8 or 16 bits of grey.
        size: expected height and width; of a PNG of another size only the header is read.
    """
    try:
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    found = inflate_map(content, size=size)
    if found is None or found.colour != (RGB if colour else GREY):
        return None
    return _decode(found)


def _decode(found: InflatedMap) -> RunLengths | None:
    """The runs of an inflated PNG; None if a row has a filter that PNG does not define."""
    size = found.pixel_bytes
    stored = np.frombuffer(found.rows, np.uint8).reshape(found.height, -1)
    unfiltered = stored[:, 0] == 0
    if unfiltered.any():  # convert to filter 1: differences from the pixel to the left
        data = stored.copy()
        chosen = slice(None) if unfiltered.all() else unfiltered
        data[chosen, 1 + size :] = stored[chosen, 1 + size :] - stored[chosen, 1:-size]
        data[chosen, 0] = 1
        stored = data
    flat = stored.ravel()
    words = flat[: flat.size // 8 * 8].view(np.uint64)
    rows, starts, values = _empty(found.height, found.width)
    count = _kernels().decode_rows(flat, words, size, rows, starts, values)
    if count < 0:
        return None
    values = values[:count]
    if found.depth == 16:  # the high byte comes first
        values = values.astype(np.uint16).byteswap().astype(np.uint32)
    return RunLengths(rows, starts[:count], values, found.width, 8 * size)


def count_shared_pixels(first: RunLengths, second: RunLengths) -> SharedPixels:
    """Number of shared pixels of every pair of values of two maps of one size.

    Raises:
        ValueError: the sizes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"maps of different sizes: {first.shape} and {second.shape}")
    size, counted = _TABLE, False
    while not counted:
        keys, pixels = np.zeros(size, np.uint64), np.zeros(size, np.int64)
        counted = _kernels().count_pairs(*first[:3], *second[:3], first.width, keys, pixels)
        size *= 4
    found = np.flatnonzero(pixels)
    found = found[np.argsort(keys[found])]
    return SharedPixels(
        (keys[found] >> np.uint64(32)).astype(np.int64),
        (keys[found] & np.uint64(0xFFFFFFFF)).astype(np.int64),
        pixels[found],
    )


def warm_up() -> None:
    """Load the compiled loops (or compile them) by reading and counting a map of one pixel.

    Raises:
        PossamError: no folder to keep the compiled loops in.
    """
    found = inflate_map(encode_map(np.zeros((1, 1), np.uint8)))
    runs = None if found is None else _decode(found)
    if runs is None:
        raise RuntimeError("a map just written cannot be read")
    count_shared_pixels(runs, runs)
