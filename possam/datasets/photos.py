"""Photographs that stay where they are: whether they are whole, and their size."""

import hashlib
from pathlib import Path

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
