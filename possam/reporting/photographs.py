"""A photograph and words from the command line, segmented into files (``possam predict``)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from possam.datasets.images import resize_labels
from possam.datasets.label_runs import segment_table
from possam.datasets.pixels import LARGEST, encode_ids, open_image, write_png
from possam.evaluation.words import Names, segment_words
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.pictures.overlay import draw_overlay
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, write_json
from possam.runtime.reading import reading

if TYPE_CHECKING:
    from possam.model.encoders.text import TextEmbeddings
    from possam.model.inference import SegmentPrediction
    from possam.model.segmenter import Segmenter


def parse_words(text: str) -> list[Names]:
    r"""Classes and their synonyms: ``"cat; dog, puppy"`` is ``[("cat",), ("dog", "puppy")]``.

    A backslash before ``;``, ``,`` or a backslash makes it a part of the name. Runs of white space
    become one space; empty pieces, and synonyms that a class has already, are left out. Benchmarks'
    vocabularies repeat names, so two classes may share one (see :func:`repeated_names`).

    Raises:
        InputError: no word at all.
    """
    classes = []
    for group in _split(text, ";"):
        names: dict[str, str] = {}
        for piece in _split(group, ","):
            name = " ".join(_ESCAPED.sub(r"\1", piece).split())
            names.setdefault(name.casefold(), name)
        if found := tuple(filter(None, names.values())):
            classes.append(found)
    if not classes:
        raise InputError('--words: no word is given; write for example "cat; dog, puppy; road"')
    return classes


_ESCAPED = re.compile(r"\\([;,\\])")


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that no backslash escapes; escapes stay as they are."""
    return re.findall(rf"(?:\\.|[^\\{separator}]|\\$)+", text, re.DOTALL)


def repeated_names(vocabulary: Sequence[Names]) -> list[str]:
    """The names of more than one class, sorted; the first of these classes gets the segments."""
    counts = Counter(name.casefold() for names in vocabulary for name in names)
    return sorted(name for name, count in counts.items() if count > 1)


def parse_stuff(text: str, vocabulary: Sequence[Names]) -> list[bool]:
    """Whether each class is a thing: all are, except those that ``text`` (``"road; sky"``) names.

    Raises:
        InputError: a listed name is not one of the vocabulary's.
    """
    listed = parse_words(text) if text.strip() else []
    stuff, known = (
        {name.casefold() for name in chain.from_iterable(classes)}
        for classes in (listed, vocabulary)
    )
    if unknown := ", ".join(sorted(stuff - known)):
        choices = ", ".join(sorted(known))
        raise InputError(f"--stuff: {unknown}: not among the words; valid choices: {choices}")
    return [not any(name.casefold() in stuff for name in names) for names in vocabulary]


class Photograph(NamedTuple):
    """``pixels``: RGB (h,w,3) uint8, upright, perhaps reduced; ``size``: full (H, W)."""

    pixels: NDArray[np.uint8]
    size: tuple[int, int]


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read any photograph as RGB (H,W,3) uint8, turned upright as its EXIF data says.

    16-bit grey is scaled to 8 bits, CMYK converted, and transparency laid over white.

    Raises:
        InputError: cannot be read, not an image, truncated, of too many pixels, or of a mode
            without colours.
    """
    return load_photograph(path, most=LARGEST).pixels


def load_photograph(path: Path, *, most: int) -> Photograph:
    """As :func:`read_photograph`, reduced to at most about ``most`` pixels where it has more."""
    with reading(path):
        content = path.read_bytes()
    with open_image(content, path, remedy="save it again as PNG or JPEG") as image:
        full = image.size
        share = min(1.0, math.sqrt(most / (full[0] * full[1])))
        small = (max(1, round(full[0] * share)), max(1, round(full[1] * share)))
        if image.draft(None, small) is None:  # a JPEG is decoded at a half, a quarter, an eighth
            image.load()
            full = image.size  # a TIFF is turned when it is decoded
        if image.getexif().get(_ORIENTATION, 1) in _LYING:
            full, small = full[::-1], small[::-1]
        ImageOps.exif_transpose(image, in_place=True)
        picture = _as_rgb(image, path)
        if share < 1:
            picture = picture.resize(small, Image.Resampling.BILINEAR, reducing_gap=2)
        return Photograph(np.array(picture), full[::-1])


_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)
"""EXIF's tag, and its values for a picture that lies on its side."""


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)
        image = Image.fromarray(((deep + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known range; save it as 8 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def segment_photograph(
    *,
    image: Path,
    words: str,
    stuff: str,
    segmenter: "Segmenter",
    embed: Callable[[Sequence[Names]], "TextEmbeddings"],
    training_vocabulary: Sequence[Names],
    inference: InferenceOptions,
    resolution: ResolutionOptions,
    mask_pixels: int,
    out: Path,
) -> dict[str, Any]:
    """Segment a photograph; write ``panoptic.png``, ``overlay.png`` and ``panoptic.json``.

    Args:
        image: the photograph, any size and mode.
        words, stuff: see :func:`parse_words`, :func:`parse_stuff`.
        segmenter, embed, training_vocabulary, inference, resolution: see
            :func:`possam.evaluation.segment.segment_words`.
        mask_pixels: a photograph of more pixels is reduced, and its segments enlarged.
        out: folder; other files in it stay. Each file appears complete, the JSON last.

    Returns:
        The annotation in ``panoptic.json`` (COCO panoptic format): its ``segments_info`` holds each
        segment's ``name``, ``score`` (0..1), ``area`` and ``bbox`` (pixels, photograph upright).

    Raises:
        InputError: an unreadable photograph, bad words, or ``out`` is a file.
    """
    vocabulary = parse_words(words)
    things = parse_stuff(stuff, vocabulary)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must name a folder")
    photo = load_photograph(image, most=mask_pixels)
    ids, segments = segment_words(
        photo.pixels,
        vocabulary,
        segmenter=segmenter,
        embed=embed,
        things=things,
        training_vocabulary=training_vocabulary,
        inference=inference,
        resolution=resolution,
    )
    overlay = draw_overlay(
        photo.pixels, ids, {s.id: s.category for s in segments}, [names[0] for names in vocabulary]
    )
    if ids.shape != photo.size:
        ids = resize_labels(ids, *photo.size)
    content = _describe(image, ids, segments, vocabulary, things)
    write_png(out / "panoptic.png", encode_ids(ids))
    with atomic_path(out / "overlay.png") as temporary:
        overlay.save(temporary, format="PNG")
    write_json(out / "panoptic.json", content)
    return dict(content["annotations"][0])


def _describe(
    image: Path,
    ids: NDArray[np.int32],
    segments: Sequence["SegmentPrediction"],
    vocabulary: Sequence[Names],
    things: Sequence[bool],
) -> dict[str, Any]:
    shapes = {key: (area, box) for key, area, box in segment_table(ids)}
    infos = [
        {
            "id": segment.id,
            "category_id": segment.category,
            "name": vocabulary[segment.category][0],
            "isthing": int(things[segment.category]),
            "score": round(float(segment.score), 6),
            "area": shapes[segment.id][0],
            "bbox": list(shapes[segment.id][1]),
            "iscrowd": 0,
        }
        for segment in segments
    ]
    height, width = ids.shape
    return {
        "images": [{"id": 1, "file_name": image.name, "width": width, "height": height}],
        "annotations": [{"image_id": 1, "file_name": "panoptic.png", "segments_info": infos}],
        "categories": [
            {"id": index, "name": names[0], "names": list(names), "isthing": int(thing)}
            for index, (names, thing) in enumerate(zip(vocabulary, things, strict=True))
        ],
    }
