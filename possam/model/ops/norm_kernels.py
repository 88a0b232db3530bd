"""Compiled loops of normalisation on a CPU; ``norms`` wraps them.

Maps and tokens are flat float32, or uint16 with the bits of bfloat16; everything else, and all that
is computed, is float32. Sums over many rows are taken block by block, in float64 across the blocks.

Shapes: B images, N rows (tokens or cells), C channels, G groups of C / G channels.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 256
"""Rows whose sums are taken in float32."""

_U = np.uint64
_BITS = np.uint32
# Sums over channels may be taken in any order, which lets them run in vectors.
_FAST = {"reassoc", "contract", "nsz"}


@njit(cache=True, inline="always")
def _load(source: Array, at: Any, channels: int, row: Array, bits: Array) -> None:
    """One row as float32; ``bits`` are those of ``row``."""
    if source.itemsize == 2:
        for channel in range(channels):
            bits[channel] = _BITS(source[at + _U(channel)]) << _BITS(16)
    else:
        for channel in range(channels):
            row[channel] = source[at + _U(channel)]


@njit(cache=True, inline="always")
def _store(row: Array, bits: Array, channels: int, out: Array, at: Any) -> None:
    """The reverse; bfloat16 takes the nearest value, of two the even one, and NaN as it is."""
    if out.itemsize == 2:
        for channel in range(channels):
            value = bits[channel]
            rounded = (value + _BITS(0x7FFF) + ((value >> _BITS(16)) & _BITS(1))) >> _BITS(16)
            special = (value & _BITS(0x7FFFFFFF)) > _BITS(0x7F800000)
            out[at + _U(channel)] = _BITS(0x7FC0) if special else rounded
    else:
        for channel in range(channels):
            out[at + _U(channel)] = row[channel]


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def layer_forward(
    values: Array, weight: Array, bias: Array, out: Array, mean: Array, rstd: Array,
    eps: Any, rows: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Layer normalisation of the rows of the blocks ``first <= block < last``.

    Args:
        values: (N, C); out: the same, written.
        weight, bias: (C,).
        mean, rstd: (N,), written: mean and inverse standard deviation of each row.
    """
    bits = np.empty(channels, np.uint32)
    row, count = bits.view(np.float32), np.float32(channels)
    for index in range(first * BLOCK, min(last * BLOCK, rows)):
        at, total, square = _U(index * channels), np.float32(0), np.float32(0)
        _load(values, at, channels, row, bits)
        for channel in range(channels):
            total += row[channel]
        middle = total / count
        for channel in range(channels):
            square += (row[channel] - middle) * (row[channel] - middle)
        scale = np.float32(1) / np.sqrt(square / count + eps)
        mean[index], rstd[index] = middle, scale
        for channel in range(channels):
            row[channel] = (row[channel] - middle) * scale * weight[channel] + bias[channel]
        _store(row, bits, channels, out, at)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def layer_backward(
    values: Array, wanted: Array, weight: Array, mean: Array, rstd: Array,
    d_values: Array, d_weight: Array, d_bias: Array,
    rows: int, channels: int, first: int, last: int,
) -> None:  # fmt: skip
    """Derivatives of :func:`layer_forward`, whose arguments these are, of the same blocks.

    Args:
        wanted: (N, C) gradient of the result; d_values: as ``values``, written.
        d_weight, d_bias: (blocks, C) float32, the shares of the blocks, zeros.
    """
    bits, gradient_bits = np.empty(channels, np.uint32), np.empty(channels, np.uint32)
    row, gradient = bits.view(np.float32), gradient_bits.view(np.float32)
    count = np.float32(channels)
    for block in range(first, last):
        own = _U(block * channels)
        for index in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            at, total, product = _U(index * channels), np.float32(0), np.float32(0)
            middle, scale = mean[index], rstd[index]
            _load(values, at, channels, row, bits)
            _load(wanted, at, channels, gradient, gradient_bits)
            for channel in range(channels):
                i = own + _U(channel)
                normal = (row[channel] - middle) * scale
                d_weight[i] += gradient[channel] * normal
                d_bias[i] += gradient[channel]
                weighted = gradient[channel] * weight[channel]
                total += weighted
                product += weighted * normal
                row[channel], gradient[channel] = normal, weighted
            total /= count
            product /= count
            for channel in range(channels):
                row[channel] = scale * (gradient[channel] - total - row[channel] * product)
            _store(row, bits, channels, d_values, at)


@njit(cache=True, nogil=True, fastmath=_FAST, error_model="numpy")
def group_backward(
    values: Array, wanted: Array, weight: Array, mean: Array, rstd: Array,
    d_values: Array, d_weight: Array, d_bias: Array,
    cells: int, channels: int, groups: int, first: int, last: int,
) -> None:  # fmt: skip
    """Derivatives of group normalisation of the images ``first <= image < last``.

    Args:
        values, wanted: (B, N, C) maps and gradient of the result; d_values: the same, written.
        weight: (C,); mean, rstd: (B, G).
        d_weight, d_bias: (B, C) float64, the shares of the images, zeros.
    """
    bits, gradient_bits = np.empty(channels, np.uint32), np.empty(channels, np.uint32)
    row, gradient = bits.view(np.float32), gradient_bits.view(np.float32)
    middle, scale = np.empty(channels, np.float32), np.empty(channels, np.float32)
    total, product = np.empty(channels, np.float32), np.empty(channels, np.float32)
    width = channels // groups
    count = np.float32(cells * width)
    for image in range(first, last):
        own, start = _U(image * channels), image * cells
        for channel in range(channels):
            place = _U(image * groups + channel // width)
            middle[channel], scale[channel] = mean[place], rstd[place]
        for block in range(0, cells, BLOCK):
            total[:] = 0
            product[:] = 0
            for cell in range(block, min(block + BLOCK, cells)):
                at = _U((start + cell) * channels)
                _load(values, at, channels, row, bits)
                _load(wanted, at, channels, gradient, gradient_bits)
                for channel in range(channels):
                    normal = (row[channel] - middle[channel]) * scale[channel]
                    total[channel] += gradient[channel]
                    product[channel] += gradient[channel] * normal
            for channel in range(channels):
                d_bias[own + _U(channel)] += total[channel]
                d_weight[own + _U(channel)] += product[channel]
        # The gradient is linear in gradient and normalised value of a cell.
        for group in range(groups):
            everything, slope = np.float64(0), np.float64(0)
            for channel in range(group * width, (group + 1) * width):
                everything += weight[channel] * d_bias[own + _U(channel)]
                slope += weight[channel] * d_weight[own + _U(channel)]
            for channel in range(group * width, (group + 1) * width):
                total[channel], product[channel] = everything / count, slope / count
        for cell in range(cells):
            at = _U((start + cell) * channels)
            _load(values, at, channels, row, bits)
            _load(wanted, at, channels, gradient, gradient_bits)
            for channel in range(channels):
                normal = (row[channel] - middle[channel]) * scale[channel]
                weighted = weight[channel] * gradient[channel]
                row[channel] = scale[channel] * (
                    weighted - total[channel] - normal * product[channel]
                )
            _store(row, bits, channels, d_values, at)
