"""Images and label maps: files to arrays and back. H W: height and width.

Label maps are written as PNGs without row filters. The filters, made for photographs, save little
on large flat areas, and undoing them takes most of the decoding time. Without them a reader only
has to inflate the stream, and is several times as fast. Pillow reads all other PNGs.
"""

import contextlib
import hashlib
import io
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image, UnidentifiedImageError

from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path
from possam.runtime.reading import reading

Array = npt.NDArray[Any]
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
"""Formats that Pillow may take a file for; for others it would start programs (EPS), or worse."""
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow raises for a damaged image, or a file that is no image."""
LARGEST = 250_000_000
"""The most pixels that are read, as RGB 0.75 GB. Pillow's own limit is lower, and it warns."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNK = struct.Struct(">I4s")
_CHECK = struct.Struct(">I")
_ORIENTATION = 0x0112
GREY, RGB = 0, 2
"""Colour types, as PNG numbers them."""


def read_upstream(path: Path) -> bytes:
    """Content of a file of an upstream archive; InputError if it cannot be read."""
    try:
        with reading(path, missing="unpack its archive again"):
            return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


@contextlib.contextmanager
def open_image(
    content: bytes, path: Path, *, remedy: str = "replace the file by a good one"
) -> Iterator[Image.Image]:
    """Open the ``content`` of image ``path``.

    Raises:
        InputError: damage, found here or in the block (says ``remedy``), or too many pixels.
    """
    pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST:
                raise InputError(
                    f"{path}: {width} x {height} are too many pixels; at most "
                    f"{LARGEST // 1_000_000} megapixels are read: reduce the picture"
                )
            yield image
    except UnidentifiedImageError as error:  # whose text is an address in memory
        raise InputError(
            f"{path}: not a readable image (no picture, or of a format that is not read); {remedy}"
        ) from error
    except UNREADABLE as error:
        raise InputError(
            f"{path}: not a readable image (damaged or truncated: {error}); {remedy}"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = pillows


def decode_file(path: Path, *, mode: str | None = None) -> tuple[Array, str]:
    """Decode a PNG or JPEG; pixels as the file stores them, EXIF orientation is not applied.

    ``mode``: PIL mode to convert to (``"RGB"`` for photographs, which may be grey); None: keep.
    Returns a uint8 or uint16 array (H, W) or (H, W, C), and the SHA-256 of the file.

    Raises:
        InputError: missing, truncated or damaged file.
    """
    content = read_upstream(path)
    pixels = decode_map(content) if mode is None else None
    if pixels is None:
        with open_image(content, path) as image:
            check_as_stored(image, path)
            image.load()
            pixels = np.asarray(image if mode is None else _converted(image, mode, path))
    return pixels, hashlib.sha256(content).hexdigest()


def _converted(image: Image.Image, mode: str, path: Path) -> Image.Image:
    """``image`` in another mode; Pillow would cut deep grey at 255, so it is scaled to 8 bits."""
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known range; save it as 8 bits")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray((deep / 257).round().astype(np.uint8))
    return image.convert(mode)


def orientation(image: Image.Image) -> int:
    """EXIF orientation (1 upright, 2..8 turned or mirrored) of an image that is not loaded yet."""
    found = image.getexif().get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def check_as_stored(image: Image.Image, path: Path) -> None:
    """InputError for a turned TIFF: of all formats, Pillow turns its pixels when it loads them."""
    if image.format == "TIFF" and (number := orientation(image)) != 1:
        raise InputError(
            f"{path}: a TIFF with EXIF orientation {number}; save it upright: labels must lie on "
            "the pixels as stored"
        )


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """A photograph as uint8 RGB (H, W, 3), writable; InputError if it cannot be decoded."""
    return np.array(decode_file(path, mode="RGB")[0])


def read_ids(path: Path) -> npt.NDArray[np.int32]:
    """Segment ids of a panoptic PNG, int32 (H, W): R + 256 G + 65536 B; InputError if damaged."""
    return decode_ids(decode_file(path)[0], path)


def decode_ids(pixels: Array, path: Path) -> npt.NDArray[np.int32]:
    """Segment ids, int32 (H, W), of a panoptic PNG's pixels; ``path``: named in an InputError."""
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: a panoptic PNG is 8-bit RGB; this one has shape {pixels.shape}")
    wide = pixels.astype(np.int32)
    return wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2]


def encode_ids(ids: Array) -> npt.NDArray[np.uint8]:
    """Pixels of a panoptic PNG, uint8 (H, W, 3), from ids in 0..2^24-1, integer (H, W)."""
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    largest = int(ids.max(initial=0))
    for channel in range(3):
        if largest >> 8 * channel:  # small ids leave the other channels zero
            rest = ids >> 8 * channel if channel else ids
            np.copyto(pixels[..., channel], rest, casting="unsafe")  # the lowest byte
    return pixels


def write_png(path: Path, pixels: Array) -> str:
    """Write a label map (see :func:`encode_map`) atomically; returns the SHA-256 of the file."""
    return write_bytes(path, encode_map(pixels))


def write_bytes(path: Path, content: bytes) -> str:
    """Write ``content`` atomically; returns its SHA-256."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def encode_map(pixels: Array) -> bytes:
    """A PNG of ``pixels``: uint8 or uint16 (H, W), or uint8 (H, W, 3); ValueError for others."""
    kinds = {(2, "uint8"): (8, GREY), (2, "uint16"): (16, GREY), (3, "uint8"): (8, RGB)}
    depth, colour = kinds.get((pixels.ndim, pixels.dtype.name), (0, 0))
    if not depth or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"no PNG of {pixels.dtype} {pixels.shape}")
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">"))
    rows = rows.view(np.uint8).reshape(height, -1)
    # Each row begins with the number of its filter; 0 is none.
    stream = np.zeros((height, rows.shape[1] + 1), np.uint8)
    stream[:, 1:] = rows
    header = _HEADER.pack(width, height, depth, colour, 0, 0, 0)
    data = isal_zlib.compress(stream.data, 2)
    return _SIGNATURE + b"".join(
        _CHUNK.pack(len(body), name) + body + _CHECK.pack(zlib.crc32(body, zlib.crc32(name)))
        for name, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class InflatedMap:
    """A PNG that :func:`inflate_map` has inflated; its row filters are not undone.

    ``depth``: bits per channel, 8 or 16; ``colour``: ``GREY`` or ``RGB``; ``rows``: for each row,
    the number of its filter and its ``width * pixel_bytes`` filtered bytes.
    """

    height: int
    width: int
    depth: int
    colour: int
    rows: bytes

    @property
    def pixel_bytes(self) -> int:
        """Bytes per pixel."""
        return (3 if self.colour == RGB else 1) * self.depth // 8


def inflate_map(content: bytes, *, size: tuple[int, int] | None = None) -> InflatedMap | None:
    """Inflate an undamaged PNG of 8- or 16-bit grey or 8-bit RGB; None for anything else.

    ``size``: height and width that it must have.

    "Anything else" includes damaged files, which Pillow then reports, interlaced ones and files
    with further chunks. The checksum inside the compressed data is not verified: the chunks' own
    checksums cover the same bytes, and verifying it would take a third of the time.
    """
    found = _parse(content)
    if found is None:
        return None
    (width, height, depth, colour, *methods), data = found
    if methods != [0, 0, 0] or (depth, colour) not in ((8, GREY), (16, GREY), (8, RGB)):
        return None
    if not 0 < width * height <= LARGEST or size not in (None, (height, width)):
        return None
    line = 1 + width * (3 if colour == RGB else 1) * depth // 8
    try:
        # One byte more than expected is allowed, so that a stream that is too long is noticed.
        stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)
        raw = stream.decompress(data[2:], height * line + 1)
    except isal_zlib.error:  # type: ignore[misc]
        return None
    # Two bytes before the data: deflate, no dictionary (RFC 1950). Four after it: a checksum.
    zlib_header = int.from_bytes(data[:2], "big")
    sound = zlib_header >> 8 & 15 == 8 and zlib_header % 31 == 0 and not zlib_header & 32
    complete = stream.eof and len(stream.unused_data) == _CHECK.size and len(raw) == height * line
    if not (sound and complete):
        return None
    return InflatedMap(height=height, width=width, depth=depth, colour=colour, rows=raw)


def decode_map(content: bytes) -> Array | None:
    """The pixels of an undamaged PNG as :func:`encode_map` writes it; None for anything else."""
    found = inflate_map(content)
    if found is None:
        return None
    rows = np.frombuffer(found.rows, np.uint8).reshape(found.height, -1)
    if rows[:, 0].any():
        return None
    pixels = np.ascontiguousarray(rows[:, 1:])
    if found.depth == 16:
        return pixels.view(">u2").astype(np.uint16)
    return pixels.reshape(found.height, found.width, 3) if found.colour == RGB else pixels


def _parse(content: bytes) -> tuple[tuple[int, ...], bytes] | None:
    """Header fields and image data of an undamaged PNG with only IHDR, IDAT and IEND, else None."""
    if not content.startswith(_SIGNATURE):
        return None
    chunks: list[tuple[bytes, bytes]] = []
    place = len(_SIGNATURE)
    while place + 12 <= len(content):
        length, name = _CHUNK.unpack_from(content, place)
        body = content[place + 8 : place + 8 + length]
        end = place + 8 + length
        if end + 4 > len(content):
            return None
        if _CHECK.unpack_from(content, end)[0] != zlib.crc32(body, zlib.crc32(name)):
            return None
        chunks.append((name, body))
        place = end + 4
    data = [body for name, body in chunks if name == b"IDAT"]
    wanted = [b"IHDR", *(b"IDAT" for _ in data), b"IEND"]
    if place != len(content) or not data or [name for name, _ in chunks] != wanted:
        return None
    header = chunks[0][1]
    return (_HEADER.unpack(header), b"".join(data)) if len(header) == _HEADER.size else None


def void_value(num_classes: int) -> int:
    """The value of void pixels in semantic PNGs: 255, or 65535 from 255 classes on."""
    return 255 if num_classes < 255 else 65535


def encode_semantic(labels: Array, num_classes: int) -> Array:
    """Pixels of a semantic PNG, uint8 or uint16 (H, W), from class indices, -1 void."""
    # void is the largest value of both types, which -1 wraps around to
    return labels.astype(np.uint8 if void_value(num_classes) == 255 else np.uint16)


def decode_semantic(pixels: Array, num_classes: int, path: Path) -> npt.NDArray[np.int32]:
    """Class indices, int32 (H, W), -1 void, of a semantic PNG's pixels.

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
    """Starts and lengths of the runs of pixels, row by row, in which no map (H, W) changes.

    Label maps have about a hundred times fewer runs than pixels, so counting over runs is faster.
    """
    flat = [labels.ravel() for labels in maps]
    changes = flat[0][1:] != flat[0][:-1]
    for labels in flat[1:]:
        changes |= labels[1:] != labels[:-1]
    starts = np.concatenate(([0], np.flatnonzero(changes) + 1))
    return starts, np.diff(starts, append=len(flat[0]))


def areas(ids: Array) -> dict[int, int]:
    """Number of pixels by value of a label map, values ascending."""
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
