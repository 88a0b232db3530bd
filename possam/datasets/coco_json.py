"""Entries of COCO's JSON files, checked one by one, before any image is read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from possam.datasets.json_fields import (
    FILE_PATH,
    FLAG,
    ID,
    REMEDY,
    TEXT,
    Field,
    check_fields,
    is_text,
    number,
    optional,
    shown,
    whole,
)
from possam.datasets.records import Category
from possam.runtime.errors import InputError
from possam.runtime.files import read_json

MAX_ID = 1 << 24
"""Segment ids are below this: they are coded in three bytes."""
_PIXELS = 1 << 28
"""More pixels than in any image that is read."""
_FAR = 1e9
"""More than any coordinate or side of a box, in pixels."""

CATEGORY = {"id": ID, "isthing": FLAG}
SEGMENT = {"id": whole(1, MAX_ID - 1), "category_id": ID, "iscrowd": optional(FLAG)}
_COORDINATE = number(-_FAR, _FAR)
BOX = Field(
    lambda v: type(v) is list and len(v) == 4 and all(map(_COORDINATE.holds, v)),
    "four numbers (x, y, width, height)",
)
INSTANCE = {"area": number(0, _FAR), "bbox": BOX, "iscrowd": FLAG}
_KEYS = {"id": ID, "image_id": ID, "file_name": FILE_PATH}
_SIDE = whole(1, _PIXELS)
_NAMES = optional(
    Field(lambda v: type(v) is list and bool(v) and all(map(is_text, v)), "a list of names")
)


def get(entry: Any, key: str, path: Path | str, where: str) -> Any:
    """``entry[key]``; InputError if there is none."""
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{path}: {where}: an entry has no {key!r}; {REMEDY}")
    return entry[key]


def plain_name(entry: Any, key: str, path: Path) -> str:
    """``entry[key]``, a file name, perhaps with subfolders; InputError otherwise."""
    check_fields(entry, {key: FILE_PATH}, f"{path}: annotations")
    return str(entry[key])


def read_lists(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """The JSON file ``path``; InputError unless every one of ``keys`` is a list in it."""
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise InputError(f"{path}: no list {key!r}; this is not a COCO annotation file")
    return dict(data)


def unique(entries: Sequence[Any], key: str, path: Path, where: str) -> dict[Any, dict[str, Any]]:
    """``entries`` by the value of ``key``, an id or a file name; InputError if one comes twice."""
    result: dict[Any, dict[str, Any]] = {}
    fields = {key: _KEYS[key]}
    for position, entry in enumerate(entries):
        check_fields(entry, fields, f"{path}: {where}[{position}]")
        value = entry[key]
        if value in result:
            raise InputError(f"{path}: {where}: {key} {value!r} comes twice; remove one")
        result[value] = entry
    return result


def image_size(record: Any, path: Path) -> tuple[int, int]:
    """Height and width in pixels that the JSON says; InputError unless an image can have them."""
    where = f"{path}: images: image {shown(record.get('id'))}"
    check_fields(record, {"height": _SIDE, "width": _SIDE}, where)
    height, width = record["height"], record["width"]
    if height * width > _PIXELS:
        raise InputError(f"{where}: {width}x{height} pixels are more than {_PIXELS}; {REMEDY}")
    return height, width


def json_categories(entries: Mapping[int, Any], path: Path) -> list[Category]:
    """The classes of a JSON by id, with its own names: ``names``, or ``name``, split at commas."""
    categories = []
    for index, (key, entry) in enumerate(entries.items()):
        where = f"{path}: categories: {key}"
        remedy = "correct it, or name the classes in a class-name file (--class-names)"
        check_fields(entry, {**CATEGORY, "name": TEXT, "names": _NAMES}, where, remedy=remedy)
        given = entry.get("names", entry["name"].split(","))
        names = tuple(filter(None, (" ".join(name.split()) for name in given)))
        if not names:
            raise InputError(f"{where}: the name is empty; {remedy}")
        categories.append(
            Category(
                index=index,
                names=names,
                is_thing=bool(entry["isthing"]),
                upstream_id=key,
                upstream_name=entry["name"].strip(),
            )
        )
    if not categories:
        raise InputError(f"{path}: categories: there is none; {REMEDY}")
    return categories


def check_segments(entries: Any, known: set[int], where: str) -> list[dict[str, int]]:
    """What the JSON says of one image's segments, checked; whether they have pixels shows later.

    Fields that are not in :data:`SEGMENT` are left out.
    """
    if not isinstance(entries, list):
        raise InputError(f"{where}: segments_info {shown(entries)} is not a list; {REMEDY}")
    seen: set[int] = set()
    kept = []
    for position, entry in enumerate(entries):
        check_fields(entry, SEGMENT, f"{where}: segments_info[{position}]")
        key, category = entry["id"], entry["category_id"]
        if key in seen:
            raise InputError(f"{where}: segment id {key} comes twice; {REMEDY}")
        seen.add(key)
        if category not in known:
            raise InputError(
                f"{where}: segment {key}: unknown category_id {category}; the segment's class must "
                "be in 'categories'"
            )
        kept.append({name: entry[name] for name in SEGMENT if name in entry})
    return kept


def check_instance(entry: Mapping[str, Any], height: int, width: int, where: str) -> None:
    """Check an instance's numbers and mask, before pycocotools sees them."""
    from possam.datasets.masks import mask_fault

    check_fields(entry, INSTANCE, where)
    if min(entry["bbox"][2:]) < 0:
        raise InputError(f"{where}: bbox {entry['bbox']} has a side below 0; {REMEDY}")
    if fault := mask_fault(entry["segmentation"], height, width):
        raise InputError(f"{where}: segmentation: {fault}; {REMEDY}")
