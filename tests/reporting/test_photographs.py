"""Any photograph and any words: readable results, or one message that says what to change."""

import json
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from possam.datasets.images import check_photo
from possam.datasets.pixels import LARGEST, read_image
from possam.evaluation.reader import read_png
from possam.model.encoders.text import TextEmbeddings, embed_vocabulary
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.model.segmenter import RawPrediction, Segmenter
from possam.pictures.overlay import PALETTE, draw_overlay
from possam.reporting.photographs import (
    load_photograph,
    parse_stuff,
    parse_words,
    read_photograph,
    repeated_names,
    segment_photograph,
)
from possam.runtime.errors import InputError

INFERENCE = InferenceOptions(
    ensemble="mase",
    alpha=0.4,
    beta=0.8,
    mase_confidence="class",
    iou_weighting=True,
    mask_filter="objectness",
    object_threshold=0.5,
    overlap_threshold=0.6,
    instance_top_k=10,
    resolution=ResolutionOptions(policy="native", size=64, max_size=64),
)
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class ColourClip(nn.Module):
    """Knows the words of three colours; every other word is a direction of its own."""

    logit_scale = 20.0

    def encode_text(self, texts: list[str]) -> Tensor:
        names = [*COLOURS]
        return torch.stack([self._embed(text, names) for text in texts])

    @staticmethod
    def _embed(text: str, names: list[str]) -> Tensor:
        word = text.split()[-1]
        axis = names.index(word) if word in names else 3
        return torch.eye(4)[axis]


class ColourSegmenter(nn.Module):
    """Two queries a colour: its pixels in the upper and in the lower half of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.clip = ColourClip()
        self.possam = SimpleNamespace(class_logits=self._class_logits)

    @staticmethod
    def _class_logits(embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        logits = 20 * text.similarity(embeddings)
        # A query that has no pixels has a zero embedding: nothing exceeds the void class.
        return torch.cat([logits, torch.full_like(logits[..., :1], 5.0)], -1)

    def forward(self, images: Tensor) -> RawPrediction:
        height, width = images.shape[-2:]
        upper = torch.arange(height)[:, None] < height // 2
        masks, embeddings = [], []
        for channel in range(3):
            is_colour = images[0].argmax(0) == channel
            for part in (upper, ~upper):
                mask = is_colour & part
                masks.append(torch.where(mask, 9.0, -9.0))
                embeddings.append(torch.eye(4)[channel] * bool(mask.any()))
        vectors = torch.stack(embeddings)[None]
        return RawPrediction(
            mask_logits=torch.stack(masks)[None],
            ldp_embeddings=vectors,
            clip_embeddings=vectors,
            iou=torch.full((1, 6), 0.9),
            padded_size=(height, width),
            image_size=(height, width),
        )


def scene(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Left third red, the rest blue, a green square in the upper right."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 3] = COLOURS["red"]
    pixels[:, width // 3 :] = COLOURS["blue"]
    pixels[5:15, 45:55] = COLOURS["green"]
    return pixels


def predict(
    image: Path, out: Path, *, words: str, stuff: str = "", mask_pixels: int = 1_000_000
) -> dict[str, Any]:
    segmenter = ColourSegmenter()
    return segment_photograph(
        image=image,
        words=words,
        stuff=stuff,
        segmenter=cast(Segmenter, segmenter),
        embed=partial(embed_vocabulary, segmenter.clip, templates=("a photo of a {}", "{}")),
        training_vocabulary=[("red",)],
        inference=INFERENCE,
        resolution=INFERENCE.resolution,
        mask_pixels=mask_pixels,
        out=out,
    )


def read_ids(path: Path) -> NDArray[np.int64]:
    pixels = np.asarray(Image.open(path)).astype(np.int64)
    return pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]


def test_segments_are_where_and_what_they_are(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    words = "horse; blue, azure; crimson, red; green"
    result = predict(tmp_path / "scene.png", tmp_path / "out", words=words, stuff="azure; red")
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert content["annotations"] == [result]
    assert content["images"] == [{"id": 1, "file_name": "scene.png", "width": 60, "height": 40}]
    assert [category["isthing"] for category in content["categories"]] == [1, 0, 0, 1]
    found = {segment["name"]: segment for segment in result["segments_info"]}
    assert set(found) == {"blue", "crimson", "green"} and len(result["segments_info"]) == 3
    assert found["green"]["bbox"] == [45, 5, 10, 10] and found["green"]["area"] == 100
    assert found["crimson"]["bbox"] == [0, 0, 20, 40] and found["crimson"]["area"] == 800
    assert found["blue"]["area"] == 40 * 40 - 100
    assert [found[name]["category_id"] for name in ("blue", "crimson", "green")] == [1, 2, 3]
    assert all(0.5 < segment["score"] <= 1 for segment in found.values())
    ids = read_ids(tmp_path / "out" / result["file_name"])
    assert ids.shape == (40, 60)
    assert np.unique(ids[:, :20]).tolist() == [found["crimson"]["id"]]
    assert np.unique(ids[5:15, 45:55]).tolist() == [found["green"]["id"]]


def test_things_stay_apart_and_stuff_becomes_one(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    for stuff, expected in (("", 2), ("red", 1)):
        result = predict(tmp_path / "scene.png", tmp_path / "out", words="red; blue", stuff=stuff)
        names = [segment["name"] for segment in result["segments_info"]]
        assert names.count("red") == expected


def test_exif_rotation_is_applied_to_everything(tmp_path: Path) -> None:
    upright = scene()
    image = Image.fromarray(np.rot90(upright).copy())  # stored lying on its side
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to view"
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_photograph(tmp_path / "turned.png"), upright)
    predict(tmp_path / "turned.png", tmp_path / "out", words="red; blue; green")
    assert read_ids(tmp_path / "out" / "panoptic.png").shape == (40, 60)


def test_other_files_in_the_folder_stay_and_nothing_half_written_remains(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    (tmp_path / "mine.txt").write_text("kept")
    predict(tmp_path / "scene.png", tmp_path, words="red")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["mine.txt", "overlay.png", "panoptic.json", "panoptic.png", "scene.png"]


def test_failure_writes_nothing(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "scene.png")
    for words, stuff in (("", ""), (" ; ,", ""), ("red", "sky")):
        with pytest.raises(InputError):
            predict(tmp_path / "scene.png", tmp_path / "out", words=words, stuff=stuff)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="is a file"):
        predict(tmp_path / "scene.png", tmp_path / "scene.png", words="red")


def test_the_smallest_photograph(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), COLOURS["blue"]).save(tmp_path / "dot.png")
    result = predict(tmp_path / "dot.png", tmp_path / "out", words="red; blue")
    assert [segment["name"] for segment in result["segments_info"]] == ["blue"]


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


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_large_photographs_are_reduced_and_their_segments_enlarged(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    path, exif = tmp_path / f"photo.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    large = scene().repeat(8, axis=0).repeat(8, axis=1)
    turns = {1: 0, 3: 2, 6: 1}[orientation]
    Image.fromarray(np.rot90(large, turns).copy()).save(path, exif=exif)
    photo = load_photograph(path, most=2400)
    assert photo.size == (320, 480) and photo.pixels.shape == (40, 60, 3)
    assert np.abs(photo.pixels.astype(int) - scene()).mean() < 8
    result = predict(path, tmp_path / "out", words="red; blue; green", mask_pixels=2400)
    found = {segment["name"]: segment for segment in result["segments_info"]}
    assert found["green"]["area"] == 6400 and found["green"]["bbox"] == [360, 40, 80, 80]
    ids = read_ids(tmp_path / "out" / "panoptic.png")
    assert ids.shape == (320, 480) and (ids == found["green"]["id"]).sum() == 6400
    whole = load_photograph(path, most=320 * 480)
    assert np.array_equal(whole.pixels, read_photograph(path))


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


def test_stuff_names_any_synonym() -> None:
    vocabulary = parse_words("cat; street, road; sky")
    assert parse_stuff("", vocabulary) == [True, True, True]
    assert parse_stuff("ROAD; sky", vocabulary) == [True, False, False]
    with pytest.raises(InputError, match=r"--stuff: grass: .*cat, road, sky, street"):
        parse_stuff("grass", vocabulary)


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


def test_overlay_refuses_what_does_not_fit() -> None:
    ids = np.ones((4, 4), np.int64)
    with pytest.raises(ValueError, match="differ in size"):
        draw_overlay(np.zeros((4, 5, 3), np.uint8), ids, {1: 0}, ["a"])
    with pytest.raises(ValueError, match="no name"):
        draw_overlay(np.zeros((4, 4, 3), np.uint8), ids, {1: 1}, ["a"])
