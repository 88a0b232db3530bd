"""Panoptic maps, segments and instances of an image from its label map and instance map."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from possam.datasets.label_runs import compact, encode_masks, segment_table
from possam.datasets.pixels import Array, runs
from possam.datasets.records import Category, Converted, Segment


def stuff_categories(
    names: Mapping[int, tuple[str, ...]], upstream_ids: Sequence[int]
) -> list[Category]:
    """Classes in the order of ``names`` (class-name file), all stuff."""
    return [
        Category(index=index, names=synonyms, is_thing=False, upstream_id=upstream)
        for index, (synonyms, upstream) in enumerate(zip(names.values(), upstream_ids, strict=True))
    ]


def find_segments(ids: Array, class_of: Callable[[int], int]) -> tuple[Segment, ...]:
    """Every segment of a panoptic map, integer (H, W), from the class of an id."""
    return tuple(
        Segment(id=key, category=class_of(key), area=area, bbox=box)
        for key, area, box in segment_table(ids)
    )


def things_as_instances(
    ids: Array, segments: Iterable[Segment], categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """Instance annotations (COCO, RLE) of the thing segments of one panoptic map."""
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
    """One image from its label map: class indices, int32 (H, W), -1 void.

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
        instances: ``class index * 256 + instance id``, integer (H, W), 0 none; None: no annotation,
            thing classes are segments as they are.
        categories: the classes.

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
