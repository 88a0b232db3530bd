"""What the readers of upstream data share: checks, resizing, panoptic maps from label maps.

Images and label maps are resized as in the published preparations.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from possam.datasets.label_runs import compact, encode_masks, segment_table
from possam.datasets.pixels import Array, check_as_stored, open_image, read_upstream, runs
from possam.datasets.records import Category, Converted, Segment
from possam.runtime.errors import InputError


def check_photo(path: Path) -> tuple[tuple[int, int], str]:
    """Check an image file; returns ((height, width) in pixels, SHA-256).

    The whole file is decoded, but JPEGs at an eighth of their size, which halves the time.

    Raises:
        InputError: missing, truncated or damaged file.
    """
    content = read_upstream(path)
    with open_image(content, path) as image:
        check_as_stored(image, path)
        width, height = image.size
        image.draft("L", (1, 1))
        image.load()
    return (height, width), hashlib.sha256(content).hexdigest()


def check_size(
    found: tuple[int, ...], labels_path: Path, size: tuple[int, ...], photo_path: Path
) -> None:
    """Raise InputError unless labels of ``found`` (H, W, ...) have the size of their photograph."""
    if found[:2] != size:
        raise InputError(
            f"{labels_path}: {found[1]}x{found[0]} pixels, but {photo_path} has "
            f"{size[1]}x{size[0]}; both must be of one size{turned(found[:2], size)}"
        )


def turned(size: tuple[int, ...], other: tuple[int, ...]) -> str:
    """A remedy to add where two sizes (height, width) are each other's, turned; else nothing."""
    if size != other[::-1]:
        return ""
    return (
        "; turn the photograph's pixels if its EXIF orientation does: labels must lie on the "
        "pixels as stored"
    )


def limited_size(height: int, width: int, *, shorter_side: int) -> tuple[int, int]:
    """Height and width in pixels after resizing: the shorter side is at most ``shorter_side``."""
    shorter, longer = sorted((height, width))
    if shorter <= shorter_side:
        return height, width
    longer = round(longer / shorter * shorter_side)
    return (shorter_side, longer) if height <= width else (longer, shorter_side)


def resize_labels(labels: Array, height: int, width: int) -> Array:
    """Resize (H, W) to (height, width); a new pixel takes the value under its upper left corner."""
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows[:, None], columns]


def resize_image(image: Array, height: int, width: int) -> Array:
    """Resize bilinearly between pixel centres, uint8 (H, W, 3) -> uint8 (height, width, 3).

    Pillow would smooth first; torch would not, but importing it costs each process seconds.
    """
    low, high, weight = _taps(image.shape[0], height)
    rows = _mix(image[low], image[high], weight[:, None, None])
    low, high, weight = _taps(image.shape[1], width)
    return np.rint(_mix(rows[:, low], rows[:, high], weight[:, None])).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[Array, Array, Array]:
    """The two old pixels that each new one lies between, and the weight of the second."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (centre - low).astype(np.float32)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    return first * (1 - weight) + second * weight


def find_segments(ids: Array, class_of: Callable[[int], int]) -> tuple[Segment, ...]:
    """Every segment of a panoptic map, integer (H, W); ``class_of``: class index of an id."""
    return tuple(
        Segment(id=key, category=class_of(key), area=area, bbox=box)
        for key, area, box in segment_table(ids)
    )


def settle_crowds(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """``segments``, with a defined order of each class's crowd regions: the largest comes last.

    Of several crowd regions of one class, panopticapi excuses predictions on the one that is listed
    last; upstream's order means nothing.
    """
    result, places = list(segments), defaultdict[int, list[int]](list)
    for place, segment in enumerate(result):
        if segment.is_crowd:
            places[segment.category].append(place)
    for own in places.values():
        ordered = sorted((result[place] for place in own), key=lambda one: (one.area, one.id))
        for place, segment in zip(own, ordered, strict=True):
            result[place] = segment
    return tuple(result)


def things_as_instances(
    ids: Array, segments: Iterable[Segment], categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """COCO instance annotations (RLE) of the thing segments of a panoptic map, integer (H, W)."""
    things = [segment for segment in segments if categories[segment.category].is_thing]
    masks = encode_masks(ids, {segment.id for segment in things})
    return [
        {
            "category_id": segment.category,
            "area": segment.area,
            "bbox": list(segment.bbox),
            "iscrowd": int(segment.is_crowd),
            "segmentation": masks[segment.id],
        }
        for segment in things
    ]


def convert_regions(labels: Array, *, image: str | bytes) -> Converted:
    """One converted image from its label map: class indices, int32 (H, W), -1 void.

    Segment ids are class index + 1. ``image``: see :class:`possam.datasets.records.Converted`.
    """
    ids = labels + 1
    segments = find_segments(ids, lambda key: key - 1)
    return Converted(image=image, ids=ids, semantic=labels, segments=segments, instances=[])


def merge_maps(
    labels: Array, instances: Array | None, categories: Sequence[Category]
) -> tuple[Array, dict[int, int]]:
    """Panoptic map of one image.

    Args:
        labels: class indices, integer (H, W), -1 void.
        instances: ``class index * 256 + instance id``, integer (H, W), 0 none; None: not annotated,
            each thing class becomes one segment.

    Returns:
        Segment ids, unsigned (H, W), 0 void, 1..S (stuff by class, then things by class and
        instance); and the class of each id.
    """
    is_thing = np.array([category.is_thing for category in categories])
    offset = 256 * len(categories)  # stuff keys lie below all thing keys
    shape = labels.shape
    starts, lengths = runs(labels) if instances is None else runs(labels, instances)
    labels = labels.ravel()[starts].astype(np.int32)
    stuff_keys = np.where(labels >= 0, labels + 1, 0)
    if instances is None:
        keys = np.where((labels >= 0) & is_thing[labels], offset + 256 * labels + 1, stuff_keys)
    else:
        instances = instances.ravel()[starts].astype(np.int32)
        keys = np.where((labels >= 0) & ~is_thing[labels], stuff_keys, 0)
        keys = np.where(instances > 0, offset + instances, keys)
    values, numbers = np.unique(keys, return_inverse=True)
    first = 1 if values[0] != 0 else 0
    ids = np.repeat(compact(numbers + first), lengths).reshape(shape)
    classes = {
        number: (value - offset) // 256 if value >= offset else value - 1
        for number, value in enumerate(values.tolist(), start=first)
        if value
    }
    return ids, classes
