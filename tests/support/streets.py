"""Two photographs in the folders of Cityscapes and of Mapillary Vistas."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.layouts import save_photo, save_rgb_ids, write

STREET = [
    {"id": 7, "name": "road", "supercategory": "flat", "isthing": 0, "color": [128, 64, 128]},
    {"id": 26, "name": "car", "supercategory": "vehicle", "isthing": 1, "color": [0, 0, 142]},
]
KEYS = ("frankfurt_000000_000294", "lindau_000000_000019")


def street_ids() -> np.ndarray:
    """4 x 6, numbered as by createPanopticImgs.py: road 7, car 26001, a group of cars 26."""
    ids = np.full((4, 6), 7)
    ids[1:3, 1:3], ids[1:3, 4:] = 26001, 26
    return ids


def street_segments() -> list[dict[str, Any]]:
    kinds = ((7, 7, 0), (26, 26, 1), (26001, 26, 0))
    return [{"id": key, "category_id": kind, "iscrowd": crowd} for key, kind, crowd in kinds]


def street_json(keys: Any, photo: str, png: str) -> dict[str, Any]:
    return {
        "images": [
            {"id": key, "file_name": photo.format(key), "width": 6, "height": 4} for key in keys
        ],
        "annotations": [
            {"image_id": key, "file_name": png.format(key), "segments_info": street_segments()}
            for key in keys
        ],
        "categories": STREET,
    }


def cityscapes(root: Path, *, marker: str = "_gtFine") -> list[str]:
    """As its scripts write it: photographs in city folders, under other names than in the JSON."""
    for key in KEYS:
        city = key.split("_")[0]
        save_photo(root / f"leftImg8bit/val/{city}/{key}_leftImg8bit.png", 4, 6)
        save_rgb_ids(
            root / f"gtFine/cityscapes_panoptic_val/{key}_gtFine_panoptic.png", street_ids()
        )
    content = street_json(KEYS, f"{{}}{marker}_leftImg8bit.png", "{}_gtFine_panoptic.png")
    write(root / "gtFine/cityscapes_panoptic_val.json", content)
    return ["val"]


def mapillary(root: Path, *, version: str = "v1.2/", year: int = 2018) -> list[str]:
    for key in ("_gQ8-Xy", "0aB_c"):
        save_photo(root / f"validation/images/{key}.jpg", 4, 6)
        save_rgb_ids(root / f"validation/{version}panoptic/{key}.png", street_ids())
    content = street_json(("_gQ8-Xy", "0aB_c"), "{}.jpg", "{}.png")
    write(root / f"validation/{version}panoptic/panoptic_{year}.json", content)
    return ["validation"]
