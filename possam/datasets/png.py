"""Label maps as PNGs that are read several times as fast as usual.

Maps of segments and classes are large flat areas. PNG's row filters, made for photographs, gain
little on them, and undoing them is what decoding takes its time for. Maps are therefore written
without filters; any reader understands that, and this one needs no more than to inflate the stream.
PNGs of others, filtered or otherwise different, are Pillow's to read.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

Array = npt.NDArray[Any]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = struct.Struct(">IIBBBBB")
_CHUNK = struct.Struct(">I4s")
_CHECK = struct.Struct(">I")
_ZLIB_HEADER = struct.Struct(">H")
GREY, RGB = 0, 2
"""Kinds of colour, as PNG numbers them."""
_LARGEST = 1 << 28
"""Pixels of the largest map that is read here; Pillow refuses larger ones as it sees fit."""


def encode_map(pixels: Array) -> bytes:
    """A PNG of ``pixels``: uint8 or uint16 (H, W), or uint8 (H, W, 3).

    Raises:
        ValueError: another type or shape, or no pixel.
    """
    kinds = {(2, np.dtype(np.uint8)): (8, GREY), (2, np.dtype(np.uint16)): (16, GREY)}
    kinds[3, np.dtype(np.uint8)] = (8, RGB)
    kind = kinds.get((pixels.ndim, pixels.dtype))
    if kind is None or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"no PNG of {pixels.dtype} {pixels.shape}")
    depth, colour = kind
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder(">"))
    rows = rows.view(np.uint8).reshape(height, -1)
    # Each row begins with the number of its filter; 0 is none.
    stream = np.zeros((height, rows.shape[1] + 1), np.uint8)
    stream[:, 1:] = rows
    header = _HEADER.pack(width, height, depth, colour, 0, 0, 0)
    data = isal_zlib.compress(stream.data, 2)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return _SIGNATURE + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return _CHUNK.pack(len(body), name) + body + _CHECK.pack(zlib.crc32(body, zlib.crc32(name)))


@dataclass(frozen=True, kw_only=True, slots=True)
class InflatedMap:
    """A PNG of one plain kind, inflated, its row filters not undone.

    Attributes:
        height, width: in pixels; depth: bits of a channel, 8 or 16; colour: ``GREY`` or ``RGB``.
        rows: of each row the number of its filter, and ``width * pixel_bytes`` filtered bytes.
    """

    height: int
    width: int
    depth: int
    colour: int
    rows: bytes

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel."""
        return (3 if self.colour == RGB else 1) * self.depth // 8


def inflate_map(content: bytes) -> InflatedMap | None:
    """A whole, sound PNG of 8 or 16 bits of grey or 8-bit RGB, inflated; None for anything else.

    The chunks' checksums are verified; a damaged file is "anything else", for Pillow to complain
    about, and so is one that is interlaced or has chunks beside the image. The checksum inside the
    compressed data is not: those of the chunks cover every byte of them, and it is a third of the
    time.
    """
    found = _parse(content)
    if found is None:
        return None
    (width, height, depth, colour, *methods), data = found
    if methods != [0, 0, 0] or (depth, colour) not in ((8, GREY), (16, GREY), (8, RGB)):
        return None
    if not 0 < width * height <= _LARGEST:
        return None
    line = 1 + width * (3 if colour == RGB else 1) * depth // 8
    try:
        # One byte more than there should be would show a stream that is too long.
        stream = isal_zlib.decompressobj(-zlib.MAX_WBITS)
        raw = stream.decompress(data[_ZLIB_HEADER.size :], height * line + 1)
    except isal_zlib.error:  # type: ignore[misc]
        return None
    complete = stream.eof and len(stream.unused_data) == _CHECK.size
    if not (complete and len(raw) == height * line and _is_zlib(data)):
        return None
    return InflatedMap(height=height, width=width, depth=depth, colour=colour, rows=raw)


def decode_map(content: bytes) -> Array | None:
    """The pixels of a whole, sound PNG as :func:`encode_map` writes it; None for anything else."""
    found = inflate_map(content)
    if found is None:
        return None
    height, width = found.height, found.width
    rows = np.frombuffer(found.rows, np.uint8).reshape(height, -1)
    if rows[:, 0].any():
        return None
    pixels = np.ascontiguousarray(rows[:, 1:])
    if found.depth == 16:
        return pixels.view(">u2").astype(np.uint16)
    return pixels.reshape(height, width, 3) if found.colour == RGB else pixels


def _is_zlib(data: bytes) -> bool:
    """Whether the two bytes before compressed data are right: deflate, no dictionary (RFC 1950)."""
    (header,) = _ZLIB_HEADER.unpack_from(data)
    return header >> 8 & 15 == 8 and header % 31 == 0 and not header & 32


def _parse(content: bytes) -> tuple[tuple[int, ...], bytes] | None:
    """Header fields and image data of a PNG of nothing but IHDR, IDAT and IEND."""
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
    names = [name for name, _ in chunks]
    data = b"".join(body for name, body in chunks if name == b"IDAT")
    if place != len(content) or len(names) < 3 or names[0] != b"IHDR" or names[-1] != b"IEND":
        return None
    if set(names[1:-1]) != {b"IDAT"} or len(chunks[0][1]) != _HEADER.size:
        return None
    return _HEADER.unpack(chunks[0][1]), data
