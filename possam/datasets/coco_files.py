"""Where the files of a data set in COCO's panoptic format are, and the ids of its images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from possam.datasets.files import Folder
from possam.runtime.errors import InputError

_TRAIN_IDS = "_trainId"
_PLACES: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "annotations/panoptic_{split}.json",
        ("annotations/panoptic_{split}", "panoptic_{split}"),
        ("{split}", "images/{split}"),
    ),
    (
        "gtFine/cityscapes_panoptic_{split}.json",
        ("gtFine/cityscapes_panoptic_{split}",),
        ("leftImg8bit/{photos}",),
    ),
    *(
        (
            f"{{split}}/{version}panoptic/panoptic_{year}.json",
            (f"{{split}}/{version}panoptic",),
            ("{split}/images", "{split}/../images"),
        )
        for version, year in (("v1.2/", 2018), ("v2.0/", 2020), ("", 2018), ("", 2020))
    ),
)
"""The JSON, and where its PNGs and photographs can be: COCO, Cityscapes, Mapillary Vistas."""


def find_coco(root: Path, split: str) -> dict[str, Any]:
    """The arguments of ``read_coco`` but the class names, for a folder as its publisher lays it.

    ``split``: as in the JSON's name (``val2017``, ``val``, ``val_trainId``), or Mapillary Vistas'
    folder (``validation``, or ``validation/v1.2`` where several versions are there).

    Raises:
        InputError: no JSON, or several.
    """
    photos = split.removesuffix(_TRAIN_IDS)

    def place(pattern: str) -> Path:
        return root / pattern.format(split=split, photos=photos)

    def first(patterns: Iterable[str]) -> Path:
        places = [place(pattern) for pattern in patterns]
        return next((found for found in places if found.is_dir()), places[0])

    found = [places for places in _PLACES if place(places[0]).is_file()]
    if not found:
        tried = ", ".join(pattern.format(split=split) for pattern, *_ in _PLACES)
        raise InputError(f"{root}: no panoptic JSON of split {split!r} there; looked for {tried}")
    if len(found) > 1:
        raise InputError(
            f"{place(found[0][0])}: {place(found[1][0])} is there, too; name one by --split (for "
            f"example {photos}/v1.2), or move the other away"
        )
    json, maps, images = found[0]
    instances = place("annotations/instances_{split}.json")
    return {
        "images": first(images),
        "panoptic_json": place(json),
        "panoptic_png": first(maps),
        "instances_json": instances if instances.is_file() else None,
    }


def number_images(data: dict[str, Any], path: Path) -> dict[str, int]:
    """Number the images of a JSON from 1 where their ids are texts; returns the numbers.

    ``images`` and ``annotations`` of ``data`` are changed: ids become the numbers, and images keep
    theirs as ``upstream_id``. With whole numbers as ids nothing changes, and nothing is returned.

    Raises:
        InputError: an id that is empty or comes twice, or an annotation of no image.
    """
    images = [entry for entry in data["images"] if isinstance(entry, dict)]
    if not images or not all(isinstance(entry.get("id"), str) for entry in images):
        return {}
    numbers: dict[str, int] = {}
    for number, entry in enumerate(images, start=1):
        if not entry["id"] or numbers.setdefault(entry["id"], number) != number:
            raise InputError(f"{path}: images: id {entry['id']!r} is empty, or comes twice")
        entry |= {"id": number, "upstream_id": entry["id"]}
    for entry in data["annotations"]:
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(key, str) or key not in numbers:
            raise InputError(
                f"{path}: annotations: image_id {key!r} is not in images, whose ids are texts"
            )
        entry["image_id"] = numbers[key]
    return numbers


def number_annotations(entries: list[Any]) -> None:
    """Number instance annotations from 1 where their ids are texts, which nothing refers to."""
    if entries and all(isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries):
        for number, entry in enumerate(entries, start=1):
            entry["id"] = number


def find_photo(name: str, folder: Folder) -> Path | None:
    """The photograph that a JSON calls ``name``; None if there is none."""
    below = name.replace("\\", "/")
    # Cityscapes' script derives the photographs' names from those of the label files.
    for known in (name, below, below.replace("_gtFine_leftImg8bit", "_leftImg8bit")):
        if (found := folder.picture(known)) is not None:
            return found
    return None


def match_names(photo: Path, png: Path, upstream_id: str) -> bool:
    """Whether photograph and PNG name the same image: by equal stems, or both by its id."""
    if upstream_id and all(file.stem.startswith(upstream_id) for file in (photo, png)):
        return True
    return photo.stem == png.stem
