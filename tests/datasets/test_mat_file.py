"""The reader of MATLAB files: every kind that scipy writes, and no trust in any byte."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from possam.datasets.mat_file import find_matrix


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8"])
def test_a_matrix_is_read_as_it_was_written(tmp_path: Path, dtype: str, compressed: bool) -> None:
    path, rng = tmp_path / "a.mat", np.random.default_rng(0)
    for shape in ((1, 1), (1, 2), (7, 3), (90, 120)):
        pixels = rng.integers(0, 100, shape).astype(dtype)
        others = {"a": "text", "b": {"c": [1.0]}, "LabelMap2": np.zeros((2, 2))}
        savemat(path, {**others, "LabelMap": pixels}, do_compression=compressed)
        found = find_matrix(path, "LabelMap")
        assert found.shape == shape and np.array_equal(found.read(), pixels)


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    def element(kind: int, data: bytes) -> bytes:
        return struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8)

    parts = element(6, struct.pack(">II", 11, 0)) + element(5, struct.pack(">ii", 2, 3))
    parts += element(1, b"LabelMap") + element(4, struct.pack(">6H", *range(6)))
    path = tmp_path / "a.mat"
    path.write_bytes(b" " * 124 + b"\x01\x00MI" + element(14, parts))
    assert np.array_equal(find_matrix(path, "LabelMap").read(), [[0, 2, 4], [1, 3, 5]])


def test_a_bomb_is_inflated_only_as_far_as_its_dimensions(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"LabelMap": np.zeros((2, 2), np.uint16)}, do_compression=True)
    content = path.read_bytes()
    plain = zlib.decompress(content[136:])
    body = zlib.compress(plain + bytes(1 << 26))
    path.write_bytes(content[:128] + struct.pack("<II", 15, len(body)) + body)
    with pytest.raises(ValueError, match="more than they should be"):
        find_matrix(path, "LabelMap").read()


@pytest.mark.parametrize("compressed", [False, True])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, compressed: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("mat") / "a.mat"
    savemat(path, {"LabelMap": np.ones((3, 5), np.uint16)}, do_compression=compressed)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(120, len(content) - 1), min_size=1, max_size=3)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        found = find_matrix(path, "LabelMap")
        pixels = found.read()
    except ValueError:
        return
    assert pixels.shape == found.shape
