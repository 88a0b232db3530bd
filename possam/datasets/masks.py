"""COCO's masks as others wrote them: checked against their image before a C library sees them.

pycocotools reads beyond a code that is cut off, and writes beyond an image whose polygons or run
lengths are too large. Lengths that do not fill the image give areas of no meaning.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

_REACH = 10
"""How many image sizes a polygon may reach beyond its image; making its mask takes memory."""
_OUTLINE = 10_000_000
"""Longest outline of a polygon in pixels; a pixel takes about 100 bytes while the mask is made."""
_BITS = 7
"""Most characters, of five bits each, that a run length needs."""


def mask_fault(mask: Any, height: int, width: int) -> str:
    """What is wrong with an annotation's ``segmentation`` for an image (pixels); "" if nothing.

    A list of polygons (x and y of three points or more), or a run-length code with ``size`` and
    ``counts`` (column by column, the first of zeros), as numbers or as COCO's text.
    """
    if type(mask) is list:
        if not mask:
            return "there is no polygon"
        faults = (_polygon_fault(polygon, height, width) for polygon in mask)
        return next(filter(None, faults), "")
    if type(mask) is not dict or "size" not in mask or "counts" not in mask:
        return "neither a list of polygons nor a run-length code with size and counts"
    size, counts = mask["size"], mask["counts"]
    if type(size) is not list or set(map(type, size)) != {int} or size != [height, width]:
        return f"size is not the image's [{height}, {width}]"
    if type(counts) is list:
        if set(map(type, counts)) != {int} or min(counts) < 0:
            return "counts are not all whole numbers, 0 or above"
        total = sum(counts)
    elif type(counts) is str:
        try:
            lengths = decode_counts(counts)
        except ValueError as error:
            return f"counts: {error}"
        if lengths.min() < 0:
            return "counts: a run length is below 0"
        total = int(lengths.sum())
    else:
        return "counts are neither a list nor text"
    if total != height * width:
        return f"counts add up to {total} pixels, the image has {height * width}"
    return ""


def _polygon_fault(polygon: Any, height: int, width: int) -> str:
    if type(polygon) is not list or not set(map(type, polygon)) <= {int, float}:
        return "a polygon is not a list of numbers"
    if len(polygon) < 6 or len(polygon) % 2:
        return "a polygon is x and y of three points or more"
    low, high = min(polygon), max(polygon)
    side = max(height, width)
    if not (low >= -_REACH * side and high <= (1 + _REACH) * side):
        return "a polygon reaches far beyond the image"
    if sum(polygon) * 0 != 0:
        return "a coordinate is not finite"
    if len(polygon) * (high - low) > _OUTLINE and _outline(polygon) > _OUTLINE:
        return f"the outline of a polygon is longer than {_OUTLINE} pixels"
    return ""


def _outline(polygon: Sequence[float]) -> float:
    """Length of a closed polygon, as the larger of its steps in x and y, in pixels."""
    xs, ys = ([*polygon[axis::2], polygon[axis]] for axis in (0, 1))
    steps = zip(pairwise(xs), pairwise(ys), strict=True)
    return sum(max(abs(b - a), abs(d - c)) for (a, b), (c, d) in steps)


def decode_counts(text: str) -> npt.NDArray[np.int64]:
    """Run lengths of COCO's text (``rleFrString`` of its API), at least one; any may be negative.

    A character holds five bits of a number, the lowest first; its sixth bit says that more follow.
    From the fourth on, a number is the difference from the one two before it.

    Raises:
        ValueError: a character that the code does not have, or a number without end.
    """
    content = text.encode() if text.isascii() else b""
    codes = np.frombuffer(content, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        raise ValueError("not the text of a run-length code")
    last = np.flatnonzero(codes < 32)
    if not last.size or last[-1] != codes.size - 1:
        raise ValueError("the text is cut off")
    starts = np.append(0, last[:-1] + 1)
    if (last - starts).max() >= _BITS:
        raise ValueError("a run length has too many digits")
    places = np.arange(codes.size) - np.repeat(starts, last - starts + 1)
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    values -= (codes[last] >> 4 & 1) << 5 * (places[last] + 1)  # the sign
    for first in (1, 2):
        values[first::2] = np.cumsum(values[first::2])
    return values
