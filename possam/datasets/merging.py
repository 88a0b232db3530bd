"""Panoptic maps from a label map and an instance map."""

from collections.abc import Sequence

import numpy as np

from possam.datasets.label_runs import compact
from possam.datasets.pixels import Array, runs
from possam.datasets.records import Category


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
        Segment ids, unsigned (H, W), 1..S (stuff first, by class; then things, by class and
        instance), 0 void; and the class of each id.
    """
    is_thing = np.array([category.is_thing for category in categories])
    offset = 256 * len(categories)  # stuff keys lie below all thing keys
    maps = (labels,) if instances is None else (labels, instances)
    shape = labels.shape
    starts, lengths = runs(*maps)
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
    classes = {}
    for position, value in enumerate(values.tolist()):
        if value:
            index = (value - offset) // 256 if value >= offset else value - 1
            classes[position + first] = index
    return ids, classes
