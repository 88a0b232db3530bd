"""One matrix of whole numbers from a MATLAB file (version 5, as MATLAB's ``save`` writes it to v7).

Every size in the file is checked before it is used, and a compressed matrix is inflated only as far
as its own dimensions need. General readers of these files trust them: a wrong byte can cost all
memory, or end the process.

The format: "MAT-File Format", The MathWorks. A file is a header of 128 bytes and elements; an
element is a type, a number of bytes, and the bytes. A matrix is an element of elements: flags,
dimensions, name, numbers (column by column).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from possam.datasets.pixels import Array, read_upstream

_HEADER = 128
_INTEGERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 12: "i8", 13: "u8"}
_INT32, _UINT32, _INT8 = 5, 6, 1
_MATRIX, _COMPRESSED = 14, 15
_NUMERIC = range(6, 16)
"""Classes of plain matrices: of doubles, singles and whole numbers, however they are stored."""
_COMPLEX = 0x800
_START = 512
"""Bytes that hold everything of a matrix before its numbers; names have at most 63 characters."""
_LARGEST = 1 << 28
"""Largest number of elements that is read."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix whose head has been checked: ``shape`` (H, W), and what :meth:`read` needs."""

    shape: tuple[int, int]
    kind: str
    offset: int
    content: bytes
    compressed: bool

    def read(self) -> Array:
        """The numbers, (H, W); ValueError if they are cut off or damaged."""
        count = self.shape[0] * self.shape[1]
        size, data = count * np.dtype(self.kind).itemsize, self.content
        if self.compressed:
            stream = zlib.decompressobj()
            data = _inflate(stream, data, self.offset + size + 8)  # padded to 8 bytes
            if not stream.eof:
                raise ValueError("the compressed numbers are cut off, or more than they should be")
        if len(data) < self.offset + size:
            raise ValueError("the numbers are cut off")
        return np.frombuffer(data, self.kind, count, self.offset).reshape(self.shape, order="F")


def find_matrix(path: Path, name: str) -> Matrix:
    """The matrix called ``name`` in a file.

    Raises:
        InputError: the file cannot be read.
        ValueError: no such matrix, not of two dimensions or of whole numbers, another version of
            the format, or a damaged file.
    """
    content = read_upstream(path)
    if content[:8] == b"\x89HDF\r\n\x1a\n" or content[:10] == b"MATLAB 7.3":
        raise ValueError("it is of version 7.3 (HDF5); save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or struct.unpack(f"{order}H", content[124:126])[0] != 0x0100:
        raise ValueError("no MATLAB file of version 5")
    names = []
    for kind, start, size in _elements(content, _HEADER, len(content), order):
        body = content[start : start + size]
        if kind == _COMPRESSED:
            head = _inflate(zlib.decompressobj(), body, _START)
        elif kind == _MATRIX:
            head = content[start - 8 : start + _START]
        else:
            continue
        found, flags, shape, (numbers, offset, length) = _parse_head(head, order)
        names.append(found)
        if found != name:
            continue
        if flags & 255 not in _NUMERIC or flags & _COMPLEX or numbers not in _INTEGERS:
            raise ValueError(f"{name} is no matrix of whole numbers")
        if len(shape) != 2 or min(shape) < 1 or shape[0] * shape[1] > _LARGEST:
            raise ValueError(f"{name} is of size {shape}, not of an image's height and width")
        if length != shape[0] * shape[1] * np.dtype(_INTEGERS[numbers]).itemsize:
            raise ValueError(f"{name}: {length} bytes are not those of {shape[0]} x {shape[1]}")
        return Matrix(
            shape=(shape[0], shape[1]),
            kind=order + _INTEGERS[numbers],
            offset=offset,
            content=body if kind == _COMPRESSED else content[start - 8 : start + size],
            compressed=kind == _COMPRESSED,
        )
    raise ValueError(f"there is no {name} in it, but {names}")


def _elements(content: bytes, place: int, end: int, order: str) -> Iterator[tuple[int, int, int]]:
    """Type, start and length of the elements in ``content[place:end]``; ValueError if cut off."""
    while place < end:
        if place + 8 > end:
            raise ValueError("it is cut off")
        kind, length = struct.unpack_from(f"{order}II", content, place)
        start = place + 8
        if kind >> 16:  # a small element: type and length in four bytes, up to four bytes of data
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
            if length > 4:
                raise ValueError("an element's length is damaged")
        yield kind, start, length
        if start + length > end:
            raise ValueError("it is cut off")
        place = start + length if kind == _COMPRESSED else -(-(start + length) // 8) * 8


def _parse_head(head: bytes, order: str) -> tuple[str, int, tuple[int, ...], tuple[int, int, int]]:
    """Of a matrix: name, flags, dimensions, and type, start and length of its numbers."""
    if len(head) < 16 or struct.unpack_from(f"{order}I", head)[0] != _MATRIX:
        raise ValueError("an element is no matrix")
    parts = []
    for part in _elements(head, 8, len(head), order):
        parts.append(part)
        if len(parts) == 4:
            break
    kinds = [kind for kind, _, _ in parts[:3]]
    if len(parts) < 4 or kinds != [_UINT32, _INT32, _INT8] or parts[0][2] != 8 or parts[1][2] % 4:
        raise ValueError("a matrix's head is damaged")
    (_, flags, _), (_, sizes, size), (_, letters, length), numbers = parts
    shape = struct.unpack_from(f"{order}{size // 4}i", head, sizes)
    name = head[letters : letters + length].decode("latin-1")
    return name, struct.unpack_from(f"{order}I", head, flags)[0], shape, numbers


def _inflate(stream: "zlib._Decompress", data: bytes, limit: int) -> bytes:
    try:
        return stream.decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"the compressed data are damaged ({error})") from error
