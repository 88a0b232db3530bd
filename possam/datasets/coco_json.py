"""Entries of COCO's JSON files, checked one by one, before any image is read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.reading import explain

MAX_ID = 1 << 24
"""Segment ids are below this: they are coded in three bytes."""
_REACH = 10
"""How many image sizes a polygon may reach beyond its image; making its mask takes memory."""


def get(entry: Any, key: str, path: Path | str, where: str) -> Any:
    """``entry[key]``; InputError if there is none."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{path}: {where}: an entry has no {key!r}; fetch the file again")
    return entry[key]


def plain_name(entry: Any, key: str, path: Path) -> str:
    """``entry[key]``, a file name without folders; InputError otherwise."""
    name = get(entry, key, path, "annotations")
    if not isinstance(name, str) or Path(name).name != name or not name:
        raise InputError(f"{path}: {key} {name!r} is not a plain file name; fetch the file again")
    return name


def read_lists(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON file ``path``; InputError unless every one of ``keys`` is a list in it."""
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise InputError(f"{path}: no list {key!r}; this is not a COCO annotation file")
    return dict(data)


def unique(entries: Sequence[Any], key: str, path: Path, where: str) -> dict[Any, dict[str, Any]]:
    """``entries`` by the value of ``key``; InputError if a value comes twice."""
    result: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        value = get(entry, key, path, where)
        if key == "file_name":
            plain_name(entry, key, path)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{path}: {where}: {key} {value!r} is not a whole number")
        if value in result:
            raise InputError(
                f"{path}: {where}: {key} {value!r} comes twice; remove one, or fetch the file again"
            )
        result[value] = entry
    return result


def image_size(record: Any, path: Path) -> tuple[int, int]:
    """Height and width in pixels that the JSON says."""
    height, width = (get(record, key, path, "images") for key in ("height", "width"))
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise InputError(
            f"{path}: images: image {record['id']} has width {width!r} and height {height!r}; "
            "both must be whole numbers above 0"
        )
    return height, width


def check_present(folder: Path, names: set[str], path: Path, what: str) -> None:
    """Check that the files that ``path`` lists are in ``folder``, from one listing of it."""
    try:
        present = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        reason = explain(error, folder)
        raise InputError(
            reason or f"{folder}: no folder of {what}s ({error.strerror}); unpack them"
        ) from error
    if lost := sorted(names - present):
        raise InputError(
            f"{folder / lost[0]}: listed in {path} but missing ({len(lost)} such {what}s of "
            f"{len(names)}); unpack the {what}s of this split again, not with a tool that believes "
            "a zip's count of entries: where it has 16 bits, 65,536 of them are lost"
        )


def check_segments(entries: Any, known: set[int], where: str) -> None:
    """Check what the JSON says of one image's segments; whether they have pixels shows later."""
    if not isinstance(entries, list):
        raise InputError(f"{where}: segments_info is {entries!r}, no list; fetch the file again")
    seen: set[int] = set()
    for entry in entries:
        key = get(entry, "id", where, "segments_info")
        category = get(entry, "category_id", where, "segments_info")
        if type(key) is not int or not 0 < key < MAX_ID:
            raise InputError(f"{where}: segment id {key!r} is no whole number in 1..{MAX_ID - 1}")
        if key in seen:
            raise InputError(f"{where}: segment id {key} comes twice; fetch the file again")
        seen.add(key)
        if type(category) is not int or category not in known:
            raise InputError(
                f"{where}: segment {key}: unknown category_id {category}; the segment's class must "
                "be in 'categories'"
            )


def check_instance(entry: Mapping[str, Any], height: int, width: int, where: str) -> None:
    """Check an instance's numbers and the form of its mask, without making the mask."""
    area, box, mask = entry["area"], entry["bbox"], entry["segmentation"]
    try:
        if not (math.isfinite(area) and area >= 0 and entry["iscrowd"] in (0, 1)):
            raise ValueError(f"area {area}, iscrowd {entry['iscrowd']}")
        if not (len(box) == 4 and all(map(math.isfinite, box))):
            raise ValueError(f"bbox {box}")
        if isinstance(mask, list):
            low, high = -_REACH * max(height, width), (1 + _REACH) * max(height, width)
            for polygon in mask or [()]:
                if len(polygon) < 6 or len(polygon) % 2 or not all(map(math.isfinite, polygon)):
                    raise ValueError("a polygon is x and y of three points or more")
                if min(polygon) < low or max(polygon) > high:
                    raise ValueError("a polygon reaches far beyond the image")
        elif list(mask["size"]) != [height, width]:
            raise ValueError(f"size {mask['size']}, the image has {[height, width]}")
        elif isinstance(mask["counts"], list):
            if min(mask["counts"], default=-1) < 0 or sum(mask["counts"]) != height * width:
                raise ValueError("the run lengths are not those of an image of this size")
        elif not (isinstance(mask["counts"], str) and mask["counts"].isascii()):
            raise ValueError("counts are neither a list nor text")
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(
            f"{where}: segmentation, area, bbox or iscrowd cannot be read ({error}); fetch the "
            "file again"
        ) from error
