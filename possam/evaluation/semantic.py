"""Mean intersection over union from per-image counts, without void pixels of the ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from possam.datasets.pixels import runs
from possam.evaluation.panoptic import check_sizes, image_order
from possam.runtime.errors import InputError


@dataclass(frozen=True)
class SemanticCounts:
    """Pixels of I images and K classes (I,K): in both, in the prediction, in the ground truth."""

    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    target: NDArray[np.int64]


@dataclass(frozen=True)
class SemanticResult:
    """Fractions in 0..1; NaN where there is no class to average.

    ``miou`` averages over classes in the ground truth, ``miou_union`` over classes in ground truth
    or prediction; ``per_class`` holds the IoU of the latter by class index.
    """

    miou: float
    miou_union: float
    per_class: dict[int, float]


class _Row(NamedTuple):
    """Classes (N,) that occur in an image, and their pixels (3,N): in both, predicted, target."""

    classes: NDArray[np.int64]
    pixels: NDArray[np.int64]


class SemanticEvaluator:
    """Collects pixel counts image by image; a prediction of -1 (no class) is a miss."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.image_ids: list[int] = []
        self._rows: list[_Row] = []

    def update(
        self, image_id: int, prediction: NDArray[np.integer], target: NDArray[np.integer]
    ) -> None:
        """Count one image: class indices (H,W); -1 is void in ``target``, a miss in ``prediction``.

        Raises:
            InputError: different sizes, or an index outside -1..K-1.
        """
        where = f"image {image_id}"
        check_sizes(where, prediction, target)
        for name, labels in (("prediction", prediction), ("ground truth", target)):
            if labels.size and (labels.min() < -1 or labels.max() >= self.num_classes):
                raise InputError(
                    f"{where}: {name}: labels are {labels.min()}..{labels.max()}; "
                    f"valid are 0..{self.num_classes - 1}, and -1 for void"
                )
        starts = lengths = np.zeros(0, np.int64)
        if target.size:
            starts, lengths = runs(prediction, target)
        self.update_pairs(image_id, prediction.ravel()[starts], target.ravel()[starts], lengths)

    def update_pairs(
        self,
        image_id: int,
        prediction: NDArray[np.integer],
        target: NDArray[np.integer],
        pixels: NDArray[np.integer],
    ) -> None:
        """Count one image from N pairs of a predicted and a true class with their ``pixels``, (N,).

        Class indices as in :meth:`update`, but not checked; a pair may occur several times.
        """
        counted = target >= 0
        truth, predicted, pixels = target[counted], prediction[counted], pixels[counted]

        def histogram(labels: NDArray[np.integer], where: NDArray[np.bool_]) -> NDArray[np.int64]:
            sums = np.bincount(labels[where], weights=pixels[where], minlength=self.num_classes)
            return sums.astype(np.int64)  # whole numbers below 2^53: exact

        both, named, every = predicted == truth, predicted >= 0, np.ones(len(truth), bool)
        rows = histogram(truth, both), histogram(predicted, named), histogram(truth, every)
        table = np.stack(rows)
        classes = np.flatnonzero(table[1] | table[2])
        self._rows.append(_Row(classes, table[:, classes]))
        self.image_ids.append(image_id)

    def extend(self, other: "SemanticEvaluator") -> None:
        """Add the images that ``other`` counted, after this one's own."""
        self._rows += other._rows
        self.image_ids += other.image_ids

    def arrange(self, image_ids: Sequence[int]) -> None:
        """Put the images into the order of ``image_ids``; an InputError if the images differ."""
        self._rows = [self._rows[place] for place in image_order(self.image_ids, image_ids)]
        self.image_ids = list(image_ids)

    def counts(self) -> SemanticCounts:
        """Counts (I,K), rows in the order of :attr:`image_ids`."""
        table = np.zeros((3, len(self._rows), self.num_classes), np.int64)
        for image, (classes, pixels) in enumerate(self._rows):
            table[:, image, classes] = pixels
        return SemanticCounts(*table)

    def result(self) -> SemanticResult:
        """Both averages over all images."""
        total = np.zeros((3, self.num_classes), np.int64)
        for classes, pixels in self._rows:
            total[:, classes] += pixels
        intersection, predicted, target = total
        union = predicted + target - intersection
        either, present = union > 0, target > 0
        iou = intersection / np.maximum(union, 1)
        return SemanticResult(
            miou=float(iou[present].mean()) if present.any() else float("nan"),
            miou_union=float(iou[either].mean()) if either.any() else float("nan"),
            per_class={int(k): float(iou[k]) for k in np.flatnonzero(either)},
        )
