"""Photographs of every kind, words as people write them, and results drawn over pictures."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from possam.datasets.images import check_photo
from possam.datasets.pixels import LARGEST, read_image
from possam.evaluation.reader import read_png
from possam.pictures.overlay import PALETTE, _distance, _widen, draw_overlay
from possam.pictures.photographs import read_photograph, shrink
from possam.pictures.words import parse_words, read_words, repeated_names
from possam.runtime.errors import InputError
from tests.support.colours import scene


def test_exif_rotation_is_applied_to_everything(tmp_path: Path) -> None:
    upright = scene()
    image = Image.fromarray(np.rot90(upright).copy())  # stored lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_photograph(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize(
    ("mode", "value", "suffix", "expected"),
    [
        ("RGB", (10, 20, 30), "png", (10, 20, 30)),
        ("L", 77, "png", (77, 77, 77)),
        ("1", 1, "png", (255, 255, 255)),
        ("I;16", 257 * 50, "png", (50, 50, 50)),
        ("RGBA", (10, 20, 30, 255), "png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), "png", (255, 255, 255)),
        ("LA", (0, 0), "png", (255, 255, 255)),
        ("CMYK", (0, 0, 0, 255), "jpg", (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), "jpg", (255, 255, 255)),
        ("P", 0, "gif", (0, 0, 0)),
        ("YCbCr", (128, 128, 128), "jpg", (128, 128, 128)),
    ],
)
def test_photographs_of_every_mode(
    mode: str, value: Any, suffix: str, expected: tuple[int, ...], tmp_path: Path
) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.new(mode, (7, 5), value).save(path)
    pixels = read_photograph(path)
    assert pixels.dtype == np.uint8 and pixels.shape == (5, 7, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def header_only(path: Path, width: int, height: int) -> None:
    """A PNG of this size by its header, with next to no content."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
            for name, body in chunks
        )
    )


@pytest.mark.parametrize("reader", [read_photograph, read_image, read_png, check_photo])
def test_too_many_pixels_and_too_few_bytes_are_told_apart(
    reader: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "picture.png"
    for size in ((60_000, 60_000), (1, LARGEST + 1)):
        header_only(path, *size)
        with pytest.raises(InputError, match="too many pixels; at most 250 megapixels") as large:
            reader(path)
        assert "truncated" not in str(large.value) and f"{size[0]} x {size[1]}" in str(large.value)
    header_only(path, 300, 200)
    with pytest.raises(InputError, match=r"picture\.png.*truncated"):
        reader(path)


def test_pillows_own_limit_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # refused from 201 pixels on
    Image.new("RGB", (40, 30), (9, 9, 9)).save(tmp_path / "photo.png")
    assert read_photograph(tmp_path / "photo.png").shape == (30, 40, 3)
    assert Image.MAX_IMAGE_PIXELS == 100 and not recwarn.list


def test_large_photographs_are_reduced() -> None:
    large = scene().repeat(8, axis=0).repeat(8, axis=1)
    small = shrink(large, 60)
    assert small.shape == (40, 60, 3) and np.abs(small.astype(int) - scene()).mean() < 8
    assert shrink(large, 480) is large


def test_unreadable_photographs_are_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    for suffix in ("jpg", "png"):
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(random).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(InputError, match=rf"cut\.{suffix}.*truncated"):
            read_photograph(path)
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    for name in ("text.jpg", "empty.png", "missing.png", "float.tiff", "."):
        with pytest.raises(InputError):
            read_photograph(tmp_path / name)


word = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=6
)
space = st.sampled_from(["", " ", "  ", "\t", "\n "])
vocabularies = st.lists(
    st.lists(word, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4
).filter(lambda classes: len({n.casefold() for c in classes for n in c}) == sum(map(len, classes)))


def escape(name: str) -> str:
    return re.sub(r"([\\,;])", r"\\\1", name)


@given(vocabularies, space, st.booleans())
def test_parse_words_inverts_writing(
    classes: list[tuple[str, ...]], padding: str, trailing: bool
) -> None:
    text = ";".join(
        ",".join(f"{padding}{escape(name)}{padding}" for name in names) + "," * trailing
        for names in classes
    )
    assert parse_words(text + ";" * trailing) == classes


def test_parse_words_examples() -> None:
    assert parse_words("cat; dog, puppy; road") == [("cat",), ("dog", "puppy"), ("road",)]
    assert parse_words("  stop \t sign ;;") == [("stop sign",)]
    for text in ("", "  ", ";", ", ;,"):
        with pytest.raises(InputError, match="no word"):
            parse_words(text)
    escaped = r"made of paper\, cardboard\, without film; either\;or, back\\slash, C\d"
    assert parse_words(escaped) == [
        ("made of paper, cardboard, without film",),
        ("either;or", "back\\slash", r"C\d"),
    ]


def test_repeated_names_are_kept_once_per_class_and_named() -> None:
    assert parse_words("dog, Dog, puppy, dog") == [("dog", "puppy")]
    assert repeated_names(parse_words("a; b, c; d, B; e, e, A")) == ["a", "b"]
    assert repeated_names(parse_words("a, A; b")) == []


def test_a_file_of_words_is_read_like_the_option(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("cat\n\n dog, Dog, puppy \nmade of paper\\, or; so\n", encoding="utf-8-sig")
    expected = [("cat",), ("dog", "puppy"), ("made of paper, or; so",)]
    assert read_words(path) == expected


def test_a_class_name_file_keeps_its_repetitions_between_classes(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("0:invalid_class_id\n3:cat,kitten,cat\n7:bat\n9:bat,club\n")
    classes = read_words(path)
    assert classes == [("cat", "kitten"), ("bat",), ("bat", "club")]
    assert repeated_names(classes) == ["bat"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no class"),
        (b"\n \n", "names no class"),
        (b"cat\n,,\n", "',,' names no class"),
        (b"\x89PNG\r\n\x1a\n\xff", "not UTF-8"),
        (b"cat\0\1\2", "control character"),
    ],
)
def test_files_without_words_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"words\.txt.*{message}"):
        read_words(path)


def test_overlay_shows_each_class_in_its_legend_colour() -> None:
    ids = np.zeros((100, 200), np.int64)
    ids[:, :120], ids[:50, 120:], ids[:, 190:] = 70000, 5, 999
    image = np.full((100, 200, 3), 128, np.uint8)
    picture = np.asarray(draw_overlay(image, ids, {70000: 2, 5: 0, 4: 1}, ["sky", "unused", "sea"]))
    legend = picture[:, 640:]
    large, small = PALETTE[0], PALETTE[1]  # by area: sea, then sky
    assert (legend == large).all(-1).any() and (legend == small).all(-1).any()
    assert not (legend == PALETTE[2]).all(-1).any()

    def hue(row: int, column: int) -> NDArray[np.float64]:
        colour = picture[row, column].astype(float) - 0.3 * 128
        return colour / np.linalg.norm(colour)

    for row, column, colour in ((20, 20, large), (20, 420, small)):
        expected = np.array(colour) / np.linalg.norm(colour)
        assert hue(row, column) @ expected > 0.99
    unlisted = picture[200, 625]
    assert np.ptp(unlisted.astype(int)) == 0, "what belongs to no segment is grey"


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (700, 2), (33, 47)])
def test_overlay_of_any_size_keeps_the_picture_whole(size: tuple[int, int]) -> None:
    ids = np.arange(size[0] * size[1]).reshape(size) % 7
    segments = {key: key % 3 for key in range(1, 7)}
    picture = draw_overlay(np.zeros((*size, 3), np.uint8), ids, segments, ["a", "b" * 80, "é"])
    assert picture.mode == "RGB" and max(picture.size) >= 640
    empty = draw_overlay(np.zeros((*size, 3), np.uint8), ids, {}, [])
    assert empty.size[1] >= 1


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 12))), st.integers(0, 4))
def test_borders_and_distances_are_scipys(mask: NDArray[np.bool_], by: int) -> None:
    side = 2 * by + 1
    wide = ndimage.maximum_filter(mask, side, mode="constant")
    np.testing.assert_array_equal(_widen(mask, by), wide)
    inside = np.pad(mask, 1)
    np.testing.assert_allclose(_distance(inside), ndimage.distance_transform_edt(inside))


def test_overlay_refuses_what_does_not_fit() -> None:
    ids = np.ones((4, 4), np.int64)
    with pytest.raises(ValueError, match="differ in size"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), ids, {1: 0}, ["a"])
    with pytest.raises(ValueError, match="no name"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), ids, {1: 1}, ["a"])
