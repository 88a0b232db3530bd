"""Label maps as runs, from PNGs with any row filter: Pillow and NumPy as oracles."""

import io
import struct
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from possam.datasets.pixels import encode_map
from possam.evaluation.run_lengths import RunLengths, count_shared_pixels, encode_array, encode_file
from possam.pipeline.codehash import module_closure
from tests.support.pictures import draw

ROOT = Path(__file__).resolve().parents[2]
FILTERS = ("none", "sub", "up", "average", "paeth")


def paeth(left: int, above: int, corner: int) -> int:
    """As the PNG specification has it."""
    estimate = left + above - corner
    distances = [abs(estimate - value) for value in (left, above, corner)]
    return (left, above, corner)[distances.index(min(distances))]


def filtered(pixels: np.ndarray, kinds: list[int]) -> bytes:
    """The rows of a PNG of ``pixels``, row y filtered by ``kinds[y]``."""
    size = pixels.dtype.itemsize * (3 if pixels.ndim == 3 else 1)
    stored = pixels.astype(pixels.dtype.newbyteorder(">"))
    lines = [bytes(size) + row.tobytes() for row in stored]
    above, result = bytes(len(lines[0])), b""
    for line, kind in zip(lines, kinds, strict=True):
        row = [kind]
        for x in range(size, len(line)):
            left, up, corner = line[x - size], above[x], above[x - size]
            guess = (0, left, up, (left + up) // 2, paeth(left, up, corner))[kind]
            row.append((line[x] - guess) % 256)
        result, above = result + bytes(row), line
    return result


def png(pixels: np.ndarray, rows: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*named) for named in chunks)


def values_of(pixels: np.ndarray) -> np.ndarray:
    """What a pixel holds, as one number."""
    wide = pixels.astype(np.uint32)
    return wide if wide.ndim == 2 else wide @ np.array([1, 256, 65536], np.uint32)


def read(content: bytes, *, colour: bool) -> RunLengths | None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "map.png")
        path.write_bytes(content)
        return encode_file(path, colour=colour)


def assert_runs(found: RunLengths | None, pixels: np.ndarray) -> None:
    """The runs are those of ``pixels``, and as few as can be."""
    assert found is not None and found.shape == pixels.shape[:2]
    assert found.rows[0] == 0 and found.rows[-1] == len(found.starts) == len(found.values)
    assert np.array_equal(draw(found), values_of(pixels))
    heads = found.rows[:-1]
    assert not found.starts[heads].any()
    within = np.setdiff1d(np.arange(len(found.starts)), heads)
    assert (found.values[within] != found.values[within - 1]).all()
    assert (found.starts[within] > found.starts[within - 1]).all()


@st.composite
def maps(draw: st.DrawFn) -> np.ndarray:
    """Stretches of equal pixels, rows that are much like those above, and some noise."""
    height = draw(st.integers(1, 9))
    width = draw(st.one_of(st.integers(1, 40), st.integers(41, 150)))
    seed, kind = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from(["grey", "grey16", "rgb"]))
    rng = np.random.default_rng(seed)
    dtype = np.uint16 if kind == "grey16" else np.uint8
    few = rng.integers(0, np.iinfo(dtype).max + 1, (5, 3 if kind == "rgb" else 1)).astype(dtype)
    few[0] = 0
    # Neighbours in only one byte, or by one: filters wrap around.
    few[1] = few[2]
    few[1, -1] += 1
    rows = []
    for _ in range(height):
        if rows and rng.random() < 0.7:
            row = np.roll(rows[-1], rng.integers(-1, 2))
        else:
            row = np.repeat(rng.integers(0, 5, width), rng.integers(1, 1 + width, width))[:width]
        strange = rng.random(width) < rng.choice([0, 0, 0.05, 0.6])
        rows.append(np.where(strange, rng.integers(0, 5, width), row))
    pixels = few[np.array(rows)]
    return pixels if kind == "rgb" else pixels[..., 0]


@settings(max_examples=300, deadline=None)
@given(maps(), st.data())
def test_every_row_filter_is_undone(pixels: np.ndarray, data: st.DataObject) -> None:
    height = len(pixels)
    kinds = data.draw(
        st.one_of(
            st.integers(0, 4).map(lambda kind: [kind] * height),
            st.lists(st.integers(0, 4), min_size=height, max_size=height),
        )
    )
    content = png(pixels, filtered(pixels, kinds))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image), pixels)
    found = read(content, colour=pixels.ndim == 3)
    assert_runs(found, pixels)
    assert found is not None
    assert found.bits == 8 * pixels.dtype.itemsize * (3 if pixels.ndim == 3 else 1)


@pytest.mark.parametrize("kind", range(5), ids=FILTERS)
@pytest.mark.parametrize("top", [2, 5, 9, 256])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_noise_is_read_alike(kind: int, top: int, dtype: type[np.unsignedinteger]) -> None:
    """Of few values, so that guesses of the Paeth filter are often equally near."""
    rng = np.random.default_rng(top)
    shape = (12, 40, 3) if dtype == np.uint8 else (12, 90)
    pixels = rng.integers(0, top, shape).astype(dtype)
    if dtype == np.uint16:
        pixels = pixels * dtype(257)
    kinds = [kind, *rng.integers(0, 5, 3).tolist(), *[kind] * 8]
    assert_runs(read(png(pixels, filtered(pixels, kinds)), colour=pixels.ndim == 3), pixels)


@pytest.mark.parametrize("kind", range(5), ids=FILTERS)
@pytest.mark.parametrize("shape", [(60, 500), (60, 167, 3), (3, 33), (1, 1), (2, 1, 3)])
def test_flat_maps_with_one_object(kind: int, shape: tuple[int, ...]) -> None:
    """Long stretches of zeros are passed eight bytes at a time."""
    pixels = np.full(shape, 7, np.uint8)
    pixels[shape[0] // 3 : 2 * shape[0] // 3, shape[1] // 4 : shape[1] // 2] = 9
    assert_runs(
        read(png(pixels, filtered(pixels, [kind] * shape[0])), colour=len(shape) == 3), pixels
    )


@settings(max_examples=60, deadline=None)
@given(maps())
def test_what_pillow_and_this_project_write_is_read(pixels: np.ndarray) -> None:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    for content in (stream.getvalue(), encode_map(pixels)):
        assert_runs(read(content, colour=pixels.ndim == 3), pixels)


@pytest.mark.parametrize("kind", [5, 6, 100, 255])
def test_a_filter_that_png_does_not_have(kind: int) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    rows = bytearray(filtered(pixels, [0, 0, 0]))
    rows[10] = kind
    assert read(png(pixels, bytes(rows)), colour=False) is None


@settings(deadline=None)
@given(maps(), st.data())
def test_a_damaged_file_is_not_read(pixels: np.ndarray, data: st.DataObject) -> None:
    content = bytearray(png(pixels, filtered(pixels, [4] * len(pixels))))
    place = data.draw(st.integers(0, len(content) - 1))
    assert read(bytes(content[:place]), colour=pixels.ndim == 3) is None
    content[place] ^= data.draw(st.integers(1, 255))
    assert read(bytes(content), colour=pixels.ndim == 3) is None


def test_what_is_not_of_the_expected_kind_is_left_to_others(tmp_path: Path) -> None:
    grey, colour = np.zeros((2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)
    assert read(encode_map(grey), colour=True) is None
    assert read(encode_map(colour), colour=False) is None
    for mode in ("1", "LA", "P", "RGBA"):
        stream = io.BytesIO()
        Image.new(mode, (5, 4)).save(stream, format="PNG")
        assert read(stream.getvalue(), colour=False) is None
        assert read(stream.getvalue(), colour=True) is None
    assert encode_file(tmp_path / "missing.png", colour=True) is None
    assert encode_file(tmp_path, colour=True) is None


integers = st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.uint32])


@settings(deadline=None)
@given(st.data())
def test_runs_of_an_array(data: st.DataObject) -> None:
    dtype = data.draw(integers)
    shape = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 20)))
    few = data.draw(st.lists(st.integers(0, min(np.iinfo(dtype).max, 2**32 - 1)), min_size=1))
    pixels = data.draw(hnp.arrays(dtype, shape, elements=st.sampled_from(few)))
    found = encode_array(pixels[:, ::-1])
    assert_runs(found, pixels[:, ::-1])
    assert found.bits == 8 * pixels.dtype.itemsize


def expected_pairs(first: np.ndarray, second: np.ndarray) -> dict[tuple[int, int], int]:
    return dict(Counter(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)))


def assert_pairs(first: np.ndarray, second: np.ndarray) -> None:
    found = count_shared_pixels(encode_array(first), encode_array(second))
    keys = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert keys == sorted(keys)
    assert dict(zip(keys, found.pixels.tolist(), strict=True)) == expected_pairs(first, second)
    assert all(part.dtype == np.int64 for part in found)


@settings(deadline=None)
@given(st.data())
def test_pairs_are_those_of_the_pixels(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 40)))
    sides = []
    for _ in range(2):
        few = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
        sides.append(data.draw(hnp.arrays(np.int64, shape, elements=st.sampled_from(few))))
    assert_pairs(*sides)


@pytest.mark.parametrize("distinct", [511, 512, 513, 3000, 9000])
def test_more_pairs_than_the_first_table_holds(distinct: int) -> None:
    rng = np.random.default_rng(distinct)
    first = rng.permutation(np.arange(9000) % distinct).reshape(90, 100) << 12
    second = rng.integers(0, 2, (90, 100)) * (2**32 - 1)
    assert_pairs(first, second)
    assert_pairs(first, first)


def test_keys_that_fall_into_one_place_of_the_table() -> None:
    """Values whose hashes agree in the bits that choose the place: they move on to the next."""
    golden, shift = 0x9E3779B97F4A7C15, 40
    inverse = pow(golden, -1, 1 << 64)
    keys = [((number << 50 | 1023 << shift) * inverse) % (1 << 64) for number in range(40)]
    assert {((key * golden) % (1 << 64)) >> shift & 1023 for key in keys} == {1023}
    first = np.array([[key >> 32 for key in keys] * 3], np.int64)
    second = np.array([[key & 0xFFFFFFFF for key in keys] * 3], np.int64)
    assert_pairs(first, second)


def test_maps_of_different_sizes_are_refused() -> None:
    one, other = (encode_array(np.zeros(shape, np.uint8)) for shape in ((2, 3), (3, 2)))
    with pytest.raises(ValueError, match="different sizes"):
        count_shared_pixels(one, other)


def test_numba_is_imported_by_the_first_map_alone() -> None:
    code = (
        "import sys, possam.cli, possam.evaluation.score as score\n"
        "assert 'numba' not in sys.modules\n"
        "score.encode_array(score.np.zeros((1, 1), 'u1'))\n"
        "assert 'numba' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_compiled_loops_are_code_of_scoring_and_of_no_network() -> None:
    kernels = "possam.evaluation.kernels"
    assert kernels in module_closure("possam.evaluation.score")
    networks = ("possam.training.trainer", "possam.evaluation.evaluate", "possam.stages.train")
    assert kernels not in module_closure(*networks)
