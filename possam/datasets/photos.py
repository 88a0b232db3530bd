"""Photographs: whether they are whole, their size, and resizing as published preparations do it."""

import hashlib
from pathlib import Path

import numpy as np

from possam.datasets.pixels import Array, open_image, read_upstream
from possam.runtime.errors import InputError


def check_photo(path: Path) -> tuple[tuple[int, int], str]:
    """Height and width in pixels of a whole image file, and its SHA-256.

    The whole file is decoded, to find truncated and damaged ones; JPEGs at an eighth of their
    height and width, which takes half the time.

    Raises:
        InputError: missing, truncated or damaged file.
    """
    content = read_upstream(path)
    with open_image(content, path) as image:
        width, height = image.size
        image.draft("L", (1, 1))
        image.load()
    return (height, width), hashlib.sha256(content).hexdigest()


def check_size(labels: Array, labels_path: Path, size: tuple[int, int], photo_path: Path) -> None:
    """Refuse a label map (H, W, ...) whose height and width are not those of its photograph.

    Raises:
        InputError: names both files.
    """
    if labels.shape[:2] != size:
        raise InputError(
            f"{labels_path}: {labels.shape[1]}x{labels.shape[0]} pixels, but {photo_path} has "
            f"{size[1]}x{size[0]}; unpack both again"
        )


def limited_size(height: int, width: int, *, shorter_side: int) -> tuple[int, int]:
    """Height and width in pixels after resizing: the shorter side is at most ``shorter_side``."""
    shorter, longer = sorted((height, width))
    if shorter <= shorter_side:
        return height, width
    longer = round(longer / shorter * shorter_side)
    return (shorter_side, longer) if height <= width else (longer, shorter_side)


def resize_labels(labels: Array, height: int, width: int) -> Array:
    """Nearest pixel, (H, W) -> (height, width): the one at or before each new pixel's corner."""
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows[:, None], columns]


def resize_image(image: Array, height: int, width: int) -> Array:
    """Bilinear between pixel centres, uint8 (H, W, 3) -> uint8 (height, width, 3).

    Pillow would filter first; torch, which would not, costs each conversion process seconds.
    """
    low, high, weight = _taps(image.shape[0], height)
    rows = _mix(image[low], image[high], weight[:, None, None])
    low, high, weight = _taps(image.shape[1], width)
    return np.rint(_mix(rows[:, low], rows[:, high], weight[:, None])).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[Array, Array, Array]:
    """The two old pixels that each new one lies between, and the weight of the second."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (centre - low).astype(np.float32)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    return first * (1 - weight) + second * weight
