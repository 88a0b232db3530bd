"""What published files hold that is unusual and yet no fault: it passes, is counted and is named.

The manifest's ``warts`` is, by kind: ``count`` (occurrences), ``images`` (how many images have it)
and ``ids`` (of the first hundred of them).
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from possam.datasets.format import IMAGES
from possam.datasets.pixels import open_image, orientation, read_upstream

KINDS = {
    "grey_photo": "grey photographs (read as RGB)",
    "cmyk_photo": "CMYK photographs (read as RGB)",
    "other_photo": "photographs of another colour mode (read as RGB)",
    "exif_orientation": "photographs with an EXIF orientation (not applied: labels must lie on the "
    "pixels as stored)",
    "unreadable_exif": "photographs with damaged EXIF data (not read)",
    "upper_case_suffix": "photographs with an upper-case suffix",
    "renamed_photo": "photographs under another name than in the list (suffix or subfolder)",
    "duplicate_photo": "photographs that another image has, too, byte for byte",
    "unlabelled": "images without a labelled pixel",
    "no_segment": "images with labelled pixels, but without a segment",
    "no_instance": "images without an instance annotation",
    "several_crowds": "further crowd regions of one class in an image (PQ excuses predictions on "
    "the largest only)",
    "instance_without_area": "instance annotations of area 0",
    "instance_without_pixel": "instance annotations whose mask covers no pixel",
}
"""Every kind of an image, and what it counts, in words."""
STRAY = "stray_file"
"""The kind of files that belong to no image: ``count``, and ``files`` (the first hundred)."""
_LISTED = 100
_MODES = {"RGB": None, "L": "grey_photo", "CMYK": "cmyk_photo"}


def find_warts(photo: Path, part: Mapping[str, Any], *, instances: bool) -> dict[str, int]:
    """Occurrences by kind in one image; duplicates show only when all images are there.

    Args:
        photo: upstream's photograph, which has been checked.
        part: ``pixels`` (by class index as text, "-1" void), ``segments`` and ``instances``.
        instances: whether the publisher annotated instances.
    """
    found = _photo_warts(photo)
    if set(part["pixels"]) <= {"-1"}:
        found["unlabelled"] = 1
    elif not part["segments"]:
        found["no_segment"] = 1
    crowds = [segment["category_id"] for segment in part["segments"] if segment["iscrowd"]]
    found["several_crowds"] = len(crowds) - len(set(crowds))
    if instances:
        found["no_instance"] = int(not part["instances"])
        found["instance_without_area"] = sum(not entry["area"] for entry in part["instances"])
        found["instance_without_pixel"] = _without_pixel(part["instances"])
    return {kind: count for kind, count in found.items() if count}


def _photo_warts(path: Path) -> dict[str, int]:
    kinds = ["upper_case_suffix"] if path.suffix != path.suffix.lower() else []
    with open_image(read_upstream(path), path) as image, warnings.catch_warnings():
        kinds.append(_MODES.get(image.mode, "other_photo") or "")
        warnings.simplefilter("error")
        try:
            exif = Image.Exif()  # image.getexif() hides damage that Pillow met on opening
            exif.load(image.info.get("exif", b""))
            turned = orientation(image) != 1
        except Exception:  # Pillow raises and warns of many kinds for damaged EXIF data
            kinds.append("unreadable_exif")
        else:
            kinds += ["exif_orientation"] if turned else []
    return {kind: 1 for kind in kinds if kind}


def _without_pixel(entries: list[dict[str, Any]]) -> int:
    from pycocotools import mask as run_length

    masks = [entry["segmentation"] for entry in entries]
    return sum(
        not run_length.area({"size": mask["size"], "counts": mask["counts"].encode()})
        for mask in masks
    )


class Tally:
    """Warts of a data set, added image by image."""

    def __init__(self) -> None:
        self._found: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
        self._photos: dict[str, list[int]] = defaultdict(list)

    def add(self, image_id: int, part: Mapping[str, Any]) -> None:
        """Add one image: the ``warts`` of its part, and the SHA-256 of its photograph."""
        for kind, count in part["warts"].items():
            self._found[kind][image_id] = count
        self._photos[part[IMAGES]].append(image_id)

    def to_json(self, stray: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
        """The manifest's ``warts``: the kinds that occur. ``stray``: see :data:`STRAY`."""
        same = [image for ids in self._photos.values() if len(ids) > 1 for image in ids]
        found = self._found | {"duplicate_photo": dict.fromkeys(sorted(same), 1)}
        files = {STRAY: {"count": len(stray), "files": list(stray[:_LISTED])}} if stray else {}
        return files | {
            kind: {
                "count": sum(images.values()),
                "images": len(images),
                "ids": list(images)[:_LISTED],
            }
            for kind, images in found.items()
            if images
        }


def describe_warts(warts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line per kind of a manifest's ``warts``."""
    lines = []
    for kind, entry in warts.items():
        if kind == STRAY:
            what, named = "stray files (left out):", entry["files"]
        else:
            what, named = f"{KINDS[kind]}: image", entry["ids"]
        more = ", ..." if len(named) > 5 else ""
        lines.append(f"{entry['count']} {what} {', '.join(map(str, named[:5]))}{more}")
    return lines
