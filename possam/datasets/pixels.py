"""Images and label maps: files to arrays and back. H W: height and width."""

import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from possam.datasets.png import decode_map, encode_map
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path

Array = npt.NDArray[Any]
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged image, or a file that is none."""


def read_upstream(path: Path) -> bytes:
    """Content of a file of an upstream archive.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); unpack its archive again"
        ) from error


@contextlib.contextmanager
def open_image(content: bytes, path: Path) -> Iterator[Image.Image]:
    """The image in ``content``, which is that of ``path``.

    Raises:
        InputError: it is damaged, or turns out to be while the block decodes it.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            yield image
    except UNREADABLE as error:
        raise InputError(
            f"{path}: damaged or truncated image ({error}); unpack its archive again"
        ) from error


def decode_file(path: Path, *, mode: str | None = None) -> tuple[Array, str]:
    """Decode a whole PNG or JPEG; pixels as the file stores them, EXIF orientation is not applied.

    Args:
        path: the file.
        mode: PIL mode to convert to (``"RGB"`` for photographs, which may be grey), None to keep.

    Returns:
        uint8 or uint16 array (H, W) or (H, W, C), and the SHA-256 of the file.

    Raises:
        InputError: missing, truncated or damaged file.
    """
    content = read_upstream(path)
    digest = hashlib.sha256(content).hexdigest()
    if mode is None and (quick := decode_map(content)) is not None:
        return quick, digest
    with open_image(content, path) as image:
        image.load()
        pixels = np.asarray(image if mode is None else image.convert(mode))
    return pixels, digest


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """A photograph as uint8 RGB (H, W, 3), writable."""
    return np.array(decode_file(path, mode="RGB")[0])


def read_ids(path: Path) -> npt.NDArray[np.int32]:
    """Segment ids of a panoptic PNG, int32 (H, W): R + 256 G + 65536 B."""
    return decode_ids(decode_file(path)[0], path)


def decode_ids(pixels: Array, path: Path) -> npt.NDArray[np.int32]:
    """Segment ids of the pixels of a panoptic PNG (``path`` only for the error message)."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: a panoptic PNG is 8-bit RGB; this one has shape {pixels.shape}")
    wide = pixels.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


def encode_ids(ids: Array) -> npt.NDArray[np.uint8]:
    """Pixels of a panoptic PNG: the inverse of :func:`decode_ids`, ids in 0..2^24-1."""
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    largest = int(ids.max(initial=0))
    for channel in range(3):
        if largest >> 8 * channel:  # small ids leave the other channels zero
            rest = ids >> 8 * channel if channel else ids
            np.copyto(pixels[..., channel], rest, casting="unsafe")  # the lowest byte
    return pixels


def write_png(path: Path, pixels: Array) -> str:
    """Write a label map as PNG, atomically; returns the SHA-256 of the file.

    ``pixels``: see :func:`possam.datasets.png.encode_map`.
    """
    return write_bytes(path, encode_map(pixels))


def write_bytes(path: Path, content: bytes) -> str:
    """Write ``content`` atomically; returns its SHA-256."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def void_value(num_classes: int) -> int:
    """The value of void pixels in semantic PNGs: 255, or 65535 from 255 classes on."""
    return 255 if num_classes < 255 else 65535


def encode_semantic(labels: Array, num_classes: int) -> Array:
    """Labels with -1 for void, as the pixels of a semantic PNG (uint8, or uint16)."""
    # void is the largest value of both types, which -1 wraps around to
    return labels.astype(np.uint8 if void_value(num_classes) == 255 else np.uint16)


def decode_semantic(pixels: Array, num_classes: int, path: Path) -> npt.NDArray[np.int32]:
    """Labels int32 (H, W), -1 void, of the pixels of a semantic PNG.

    Raises:
        InputError: not one channel, or a value that is neither a class nor void.
    """
    if pixels.ndim != 2:
        raise InputError(f"{path}: a semantic PNG has one channel; this one has {pixels.shape}")
    labels = pixels.astype(np.int32)
    labels[labels == void_value(num_classes)] = -1
    if labels.size and labels.max() >= num_classes:
        raise InputError(
            f"{path}: value {labels.max()} is no class (0..{num_classes - 1}); convert again"
        )
    return labels


def runs(*maps: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Stretches of pixels, row by row, in which no map changes: starts and lengths.

    Label maps have about a hundred times fewer runs than pixels; counting over runs is faster.
    """
    flat = [labels.ravel() for labels in maps]
    changes = flat[0][1:] != flat[0][:-1]
    for labels in flat[1:]:
        changes |= labels[1:] != labels[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return starts, np.diff(starts, append=len(flat[0]))


def areas(ids: Array) -> dict[int, int]:
    """Pixels of each value of a label map, ascending."""
    if not ids.size:
        return {}
    starts, lengths = runs(ids)
    values, compact = np.unique(ids.ravel()[starts], return_inverse=True)
    counts = np.bincount(compact, weights=lengths).astype(np.int64)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def class_map(ids: Array, classes: Mapping[int, int]) -> npt.NDArray[np.int32]:
    """Class of every pixel, int32 (H, W), from the class of each segment id; -1 for other ids."""
    if not ids.size:
        return np.empty(ids.shape, np.int32)
    starts, lengths = runs(ids)
    values, compact = np.unique(ids.ravel()[starts], return_inverse=True)
    table = np.array([classes.get(value, -1) for value in values.tolist()], dtype=np.int32)
    return np.repeat(table[compact], lengths).reshape(ids.shape)
