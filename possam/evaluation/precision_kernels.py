"""The compiled loop over ranked detections; :mod:`possam.evaluation.instance` wraps it."""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]


@njit(cache=True, nogil=True, error_model="numpy")
def interpolate(
    weights: Array, image: Array, matched: Array, ignored: Array, objects: Array,
    recall_levels: Array, result: Array,
) -> None:  # fmt: skip
    """Precision at recall levels, as pycocotools interpolates it, of many weightings of the images.

    Args:
        weights: (S, I) float64.
        image: (D,) int64, the image of each detection, best detection first.
        matched, ignored: (D, T) bool.
        objects: (S,) float64, total weight of the objects to find.
        recall_levels: (R,) float64, ascending.
        result: (S, T, R) float64, written; NaN where there are no objects.
    """
    detections, thresholds = matched.shape
    levels = len(recall_levels)
    hits = np.empty((thresholds, detections), np.int64)
    numbers, skips = np.zeros(thresholds, np.int64), np.zeros(thresholds, np.bool_)
    for detection in range(detections):
        for threshold in range(thresholds):
            if ignored[detection, threshold]:
                skips[threshold] = True
            elif matched[detection, threshold]:
                hits[threshold, numbers[threshold]] = detection
                numbers[threshold] += 1
    own, every, kept = np.empty(detections), np.empty(detections), np.empty(detections)
    precision, recall = np.empty(detections), np.empty(detections)
    for sample in range(len(weights)):
        if objects[sample] <= 0:
            result[sample] = np.nan
            continue
        total = 0.0
        for detection in range(detections):
            own[detection] = weights[sample, image[detection]]
            total += own[detection]
            every[detection] = total
        for threshold in range(thresholds):
            counted = every
            if skips[threshold]:
                total = 0.0
                for detection in range(detections):
                    if not ignored[detection, threshold]:
                        total += own[detection]
                    kept[detection] = total
                counted = kept
            number, found = numbers[threshold], 0.0
            for hit in range(number):
                detection = hits[threshold, hit]
                found += own[detection]
                precision[hit] = found / (counted[detection] + np.spacing(1.0))
                recall[hit] = found / objects[sample]
            for hit in range(number - 2, -1, -1):
                precision[hit] = max(precision[hit], precision[hit + 1])
            level = 0
            for hit in range(number):
                while level < levels and recall_levels[level] <= recall[hit]:
                    result[sample, threshold, level] = precision[hit]
                    level += 1
            result[sample, threshold, level:] = 0.0
