"""Label maps as unfiltered PNGs, against Pillow; and what is counted over runs."""

import io
import itertools
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from possam.datasets.pixels import areas, class_map, decode_map, encode_map, runs

sides = st.integers(1, 40)
maps = st.one_of(
    st.tuples(sides, sides).flatmap(lambda size: hnp.arrays(np.uint8, size)),
    st.tuples(sides, sides).flatmap(lambda size: hnp.arrays(np.uint16, size)),
    st.tuples(sides, sides, st.just(3)).flatmap(lambda size: hnp.arrays(np.uint8, size)),
)


def by_pillow(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", **options)
    return stream.getvalue()


@given(maps)
def test_pillow_reads_what_is_written_and_so_does_this(pixels: np.ndarray) -> None:
    content = encode_map(pixels)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    found = decode_map(content)
    assert found is not None and found.dtype == pixels.dtype
    assert np.array_equal(found, pixels)


@given(maps, st.integers(0, 9))
def test_what_pillow_writes_is_read_alike_or_left_to_pillow(pixels: np.ndarray, level: int) -> None:
    found = decode_map(by_pillow(pixels, compress_level=level))
    assert found is None or (found.dtype == pixels.dtype and np.array_equal(found, pixels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_other_kinds_are_left_to_pillow(mode: str) -> None:
    image = Image.new(mode, (5, 4))
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    found = decode_map(stream.getvalue())
    if mode in ("1", "LA", "P", "RGBA"):
        assert found is None
    else:
        assert found is None or np.array_equal(found, np.asarray(image))


@given(maps, st.data())
def test_one_changed_or_missing_byte_is_never_read(pixels: np.ndarray, data: st.DataObject) -> None:
    content = bytearray(encode_map(pixels))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    assert decode_map(bytes(content)) is None
    assert decode_map(encode_map(pixels)[:place]) is None
    assert decode_map(encode_map(pixels) + b"\0") is None


def rebuilt(
    width: int, height: int, raw: bytes, *, interlace: int = 0, data: bytes | None = None
) -> bytes:
    """A PNG, 8-bit grey, of any row data, or any compressed ``data``; the chunks are sound."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace)
    data = zlib.compress(raw) if data is None else data
    body = chunk(b"IHDR", header) + chunk(b"IDAT", data[:5]) + chunk(b"IDAT", data[5:])
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def test_header_and_data_must_agree() -> None:
    rows = b"\0\1\2\0\3\4"
    found = decode_map(rebuilt(2, 2, rows))
    assert found is not None and found.tolist() == [[1, 2], [3, 4]]
    assert decode_map(rebuilt(2, 2, rows + b"\0")) is None, "more data than pixels"
    assert decode_map(rebuilt(2, 3, rows)) is None, "fewer data than pixels"
    assert decode_map(rebuilt(2, 2, rows, interlace=1)) is None
    assert decode_map(rebuilt(2, 2, b"\0\1\2\2\3\4")) is None, "a filtered row"
    assert decode_map(rebuilt(1 << 16, 1 << 16, rows)) is None, "a size that would not fit"
    assert decode_map(b"") is None


def test_compressed_data_in_another_wrapping_are_not_read() -> None:
    rows = b"\0\1\2\0\3\4"
    data = zlib.compress(rows)

    def read(changed: bytes) -> object:
        return decode_map(rebuilt(2, 2, rows, data=changed))

    assert read(data) is not None
    assert read(b"\x79" + data[1:]) is None, "another method"
    assert read(data[:1] + b"\x9d" + data[2:]) is None, "a header that is no multiple of 31"
    assert read(b"\x78\xbb" + data[2:]) is None, "a dictionary"
    for length in (*range(6), len(data) - 1):
        assert read(data[:length]) is None, "cut off"
    assert read(data + b"\0") is None, "something behind"
    raw = zlib.compressobj(wbits=-15)
    assert read(raw.compress(rows) + raw.flush()) is None, "no header at all"


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((2, 2), np.int32), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8)],
)
def test_what_no_such_png_can_hold_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no PNG"):
        encode_map(pixels)


small = hnp.arrays(np.int32, st.tuples(sides, sides), elements=st.integers(0, 3))


@given(small)
def test_areas_and_classes_are_those_of_the_pixels(ids: np.ndarray) -> None:
    assert areas(ids) == dict(Counter(ids.ravel().tolist()))
    assert list(areas(ids)) == sorted(areas(ids))
    classes = {0: 5, 2: 7}
    expected = np.vectorize(lambda value: classes.get(value, -1))(ids)
    assert np.array_equal(class_map(ids, classes), expected)


@given(st.tuples(sides, sides), st.data())
def test_runs_are_where_no_map_changes(size: tuple[int, int], data: st.DataObject) -> None:
    elements = st.integers(0, 2)
    first, second = (data.draw(hnp.arrays(np.int32, size, elements=elements)) for _ in range(2))
    starts, lengths = runs(first, second)
    assert lengths.min() > 0 and lengths.sum() == first.size
    for labels in (first, second):
        assert np.array_equal(np.repeat(labels.ravel()[starts], lengths), labels.ravel())
    pairs = list(zip(first.ravel()[starts], second.ravel()[starts], strict=True))
    assert all(a != b for a, b in itertools.pairwise(pairs)), "as long as can be"
