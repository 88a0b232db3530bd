"""A photograph and words from the command line, segmented into files (``possam predict``)."""

import struct
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from possam.datasets.label_runs import segment_table
from possam.datasets.pixels import encode_ids
from possam.evaluation.segment import Names, segment_words
from possam.model.options import InferenceOptions
from possam.reporting.overlay import draw_overlay
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, write_json
from possam.runtime.reading import check_readable

if TYPE_CHECKING:
    from possam.model.encoders.text import TextEmbeddings
    from possam.model.inference import SegmentPrediction
    from possam.model.segmenter import Segmenter


def parse_words(text: str) -> list[Names]:
    """Classes and their synonyms: ``"cat; dog, puppy"`` is ``[("cat",), ("dog", "puppy")]``.

    Runs of white space become one space; empty pieces are left out.

    Raises:
        InputError: no word at all, or a word that is written twice (case does not matter).
    """
    classes = [
        names
        for group in text.split(";")
        if (names := tuple(filter(None, (" ".join(piece.split()) for piece in group.split(",")))))
    ]
    known: set[str] = set()
    for name in chain.from_iterable(classes):
        if name.casefold() in known:
            raise InputError(f"--words: {name!r} is written twice; name every word once")
        known.add(name.casefold())
    if not classes:
        raise InputError('--words: no word is given; write for example "cat; dog, puppy; road"')
    return classes


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


def read_photograph(path: Path) -> NDArray[np.uint8]:
    """Read any photograph as RGB (H,W,3) uint8, turned upright as its EXIF data says.

    16-bit grey is scaled to 8 bits, CMYK converted, and transparency laid over white.

    Raises:
        InputError: no such file, not an image, truncated, or of a mode without colours.
    """
    check_readable(path)
    try:
        with Image.open(path) as image:
            image.load()
            # Images without an EXIF orientation come back as they are.
            return _as_rgb(ImageOps.exif_transpose(image), path)
    except (
        OSError,  # also Pillow's UnidentifiedImageError, and truncated files
        SyntaxError,  # Pillow's error for broken PNG chunks
        ValueError,
        EOFError,
        struct.error,
        Image.DecompressionBombError,
    ) as error:
        raise InputError(
            f"{path}: not a readable image ({error}); it may be truncated, or no image at all"
        ) from error


def _as_rgb(image: Image.Image, path: Path) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        grey = (deep.clip(0, 65535) / 257).round().astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode == "F":
        raise InputError(f"{path}: floating-point pixels have no known range; save it as 8 bits")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return np.array(image.convert("RGB"))


def segment_photograph(
    *,
    image: Path,
    words: str,
    stuff: str,
    segmenter: "Segmenter",
    embed: Callable[[Sequence[Names]], "TextEmbeddings"],
    training_vocabulary: Sequence[Sequence[str]],
    inference: InferenceOptions,
    out: Path,
) -> dict[str, Any]:
    """Segment a photograph; write ``panoptic.png``, ``overlay.png`` and ``panoptic.json``.

    Args:
        image: the photograph, any size and mode.
        words, stuff: see :func:`parse_words`, :func:`parse_stuff`.
        segmenter, embed, training_vocabulary, inference: see
            :func:`possam.evaluation.segment.segment_words`.
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
    pixels = read_photograph(image)
    ids, segments = segment_words(
        pixels,
        vocabulary,
        segmenter=segmenter,
        embed=embed,
        things=things,
        training_vocabulary=training_vocabulary,
        inference=inference,
    )
    content = _describe(image, ids, segments, vocabulary, things)
    overlay = draw_overlay(
        pixels, ids, {s.id: s.category for s in segments}, [names[0] for names in vocabulary]
    )
    coded = Image.fromarray(encode_ids(ids))
    for name, picture in (("panoptic.png", coded), ("overlay.png", overlay)):
        with atomic_path(out / name) as temporary:
            picture.save(temporary, format="PNG")
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
