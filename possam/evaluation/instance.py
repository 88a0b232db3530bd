"""Mask average precision (COCO: IoU 0.50 to 0.95, at most 100 detections per image and class).

pycocotools computes the IoUs; detections are matched with the ground truth by the rule of its
``COCOeval.evaluate``. The matches are kept, and precision is accumulated from them with one weight
per image: weights of one give exactly ``COCOeval.accumulate``, multinomial weights the AP of a
bootstrap resample.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from possam.runtime.compiled_loops import importing_loops
from possam.runtime.errors import InputError

MAX_DETECTIONS = 100
_BLOCK = 1 << 20
"""Largest number of overlaps that are matched at once, including the padding."""
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
IOU_LEVELS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class InstanceMatches:
    """D detections, sorted by class and then image; T IoU levels; I images; K classes.

    Attributes:
        image (D,) int64: row of the image; category (D,) int64; score (D,) float64.
        matched (D,T) bool: matched with an object or a crowd region. ignored (D,T) bool: matched
            with a crowd region, so neither right nor wrong.
        targets (I,K) int64: number of objects to find.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    score: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    targets: NDArray[np.int64]

    def precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Interpolated precision (S,T,R,K) of S weightings (S,I) at R recalls; NaN: no objects."""
        shape = (len(weights), self.matched.shape[1], len(RECALL_LEVELS), self.targets.shape[1])
        result = np.full(shape, np.nan)
        for category in np.flatnonzero(self.targets.any(axis=0)):
            result[..., category] = self._class_precision(int(category), weights)
        return result

    def average_precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """AP (S,) in 0..1 of each weighting (S,I): mean over levels and classes with objects."""
        per_class = np.full((len(weights), self.targets.shape[1]), np.nan)
        for category in np.flatnonzero(self.targets.any(axis=0)):
            precision = self._class_precision(int(category), weights)
            per_class[:, category] = precision.mean(axis=(1, 2))
        present = ~np.isnan(per_class)
        total = np.where(present, per_class, 0.0).sum(axis=1)
        return np.divide(
            total, present.sum(1), out=np.full(len(weights), np.nan), where=present.any(axis=1)
        )

    def _class_precision(self, category: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Interpolated precision (S,T,R) of one class."""
        rows = np.flatnonzero(self.category == category)
        rows = rows[np.argsort(-self.score[rows], kind="stable")]
        result = np.empty((len(weights), self.matched.shape[1], len(RECALL_LEVELS)))
        _kernels().interpolate(
            np.ascontiguousarray(weights, np.float64),
            self.image[rows],
            self.matched[rows],
            self.ignored[rows],
            weights @ self.targets[:, category].astype(np.float64),
            RECALL_LEVELS,
            result,
        )
        return result


@functools.cache
def _kernels() -> Any:
    """The compiled loop, imported at its first use: importing numba takes half a second."""
    with importing_loops():
        from possam.evaluation import precision_kernels
    return precision_kernels


class InstanceEvaluator:
    """Collects detections and matches them with COCO-format ground truth.

    Args:
        instances: COCO instances JSON: category ids 0..K-1, things only, RLE or polygons.
        image_ids: the images to evaluate, in the order of the per-image statistics.
        num_classes: K, stuff included.
    """

    def __init__(
        self, instances: dict[str, Any], *, image_ids: Sequence[int], num_classes: int
    ) -> None:
        self._image_ids, self._num_classes = list(image_ids), num_classes
        self._things = {int(category["id"]) for category in instances["categories"]}
        images = {image["id"]: image for image in instances["images"]}
        if missing := [i for i in self._image_ids if i not in images]:
            raise InputError(f"instances.json: images: lacks ids {missing[:5]}; convert again")
        self._images = {i: images[i] for i in self._image_ids}
        self._targets = instances["annotations"]
        self._detections: list[dict[str, Any]] = []

    def update(
        self,
        image_id: int,
        masks: NDArray[np.bool_],
        labels: NDArray[np.integer],
        scores: NDArray[np.floating],
        *,
        place: NDArray[np.integer] | None = None,
    ) -> None:
        """Add the detections of one image: masks (N,H,W), class indices (M,), scores (M,).

        ``place`` (M,): index of each detection's mask; default: one mask per detection, in order.
        """
        if not len(labels):
            return
        # COCO's run lengths go down the columns, so pycocotools needs Fortran order.
        columns = np.ascontiguousarray(masks.transpose(0, 2, 1)).view(np.uint8)
        encoded = rle.encode(columns.transpose(2, 1, 0))
        if place is not None:
            encoded = [encoded[index] for index in place.tolist()]
        self.update_encoded(image_id, encoded, labels.tolist(), scores.tolist())

    def update_encoded(
        self,
        image_id: int,
        masks: Sequence[Mapping[str, Any]],
        labels: Sequence[int],
        scores: Sequence[float],
    ) -> None:
        """Add detections of one image: compressed run lengths, class indices, scores."""
        self._detections += (
            {"image_id": image_id, "category_id": label, "score": score, "segmentation": code}
            for code, label, score in zip(masks, labels, scores, strict=True)
        )

    def finish(self) -> InstanceMatches:
        """Match all detections with all objects."""
        groups = self._groups()
        row = {image_id: index for index, image_id in enumerate(self._image_ids)}
        targets = np.zeros((len(self._image_ids), self._num_classes), np.int64)
        for group in groups:
            targets[row[group.image_id], group.category] = np.count_nonzero(~group.crowd)
        counts = [len(group.scores) for group in groups]
        matched, ignored = np.zeros((2, sum(counts), len(IOU_LEVELS)), bool)
        first = np.cumsum([0, *counts])
        for members, size in _blocks(groups):
            _match([groups[index] for index in members], first[members], size, matched, ignored)
        return InstanceMatches(
            image=np.repeat([row[group.image_id] for group in groups], counts).astype(np.int64),
            category=np.repeat([group.category for group in groups], counts).astype(np.int64),
            score=np.concatenate([np.zeros(0), *(group.scores for group in groups)]),
            matched=matched,
            ignored=ignored,
            targets=targets,
        )

    def _groups(self) -> list["_Group"]:
        """Groups sorted by class, then by image id."""
        sides: dict[tuple[int, int], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {}
        for side, annotations in enumerate((self._detections, self._targets)):
            for annotation in annotations:
                label, image_id = annotation["category_id"], annotation["image_id"]
                if label in self._things and image_id in self._images:
                    sides.setdefault((label, image_id), ([], []))[side].append(annotation)
        return [
            _Group.of(label, self._images[image_id], *sides[label, image_id])
            for label, image_id in sorted(sides)
        ]


@dataclass(frozen=True)
class _Group:
    """D detections, best first, and G objects, crowd regions last, of one class in one image.

    Attributes:
        scores (D,) float64; crowd (G,) bool; overlaps (D,G) float64: IoU, with a crowd region the
            share of the detection.
    """

    image_id: int
    category: int
    scores: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    overlaps: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        category: int,
        image: dict[str, Any],
        detections: list[dict[str, Any]],
        objects: list[dict[str, Any]],
    ) -> "_Group":
        order = np.argsort([-found["score"] for found in detections], kind="stable")
        best = [detections[index] for index in order[:MAX_DETECTIONS]]
        objects = sorted(objects, key=lambda target: bool(target.get("iscrowd", 0)))
        crowd = np.array([bool(target.get("iscrowd", 0)) for target in objects], bool)
        overlaps = np.zeros((len(best), len(objects)))
        if overlaps.size:
            overlaps = rle.iou(
                [found["segmentation"] for found in best],
                [_encoded(target["segmentation"], image) for target in objects],
                crowd.astype(np.uint8).tolist(),
            )
        scores = np.array([found["score"] for found in best], np.float64)
        return cls(image["id"], category, scores, crowd, overlaps)


def _encoded(segmentation: Any, image: dict[str, Any]) -> Any:
    """Compressed run lengths of a mask that is given as polygons or runs."""
    size = image["height"], image["width"]
    if isinstance(segmentation, list):
        return rle.merge(rle.frPyObjects(segmentation, *size))
    if isinstance(segmentation["counts"], list):
        return rle.frPyObjects(segmentation, *size)
    return segmentation


def _blocks(groups: Sequence[_Group]) -> Iterator[tuple[list[int], int]]:
    """Groups to match together, most detections first, and the number of objects to pad each to.

    Groups without a detection or an object have nothing to match and are left out.
    """
    by_size: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        if group.overlaps.size:
            size = 1 << (len(group.crowd) - 1).bit_length()
            by_size.setdefault(size, []).append(index)
    for size, members in by_size.items():
        members.sort(key=lambda index: -len(groups[index].scores))
        while members:
            count = max(1, _BLOCK // (size * len(groups[members[0]].scores)))
            yield members[:count], size
            members = members[count:]


def _match(
    groups: Sequence[_Group],
    first: NDArray[np.int64],
    size: int,
    matched: NDArray[np.bool_],
    ignored: NDArray[np.bool_],
) -> None:
    """Match as COCOeval does, all groups and IoU levels at once, one rank of detections at a time.

    A detection takes the object of largest IoU (the last of equals) that no better detection has
    taken. If there is none, it takes a crowd region, which any number of detections may share.

    Args:
        groups: each with 1 to ``size`` objects and at least one detection; most detections first,
            so that the groups with a detection of some rank are a leading slice.
        first: row of ``matched`` and ``ignored`` (D,T), which are written, where a group begins.
    """
    ranks = np.array([len(group.scores) for group in groups])
    overlaps = np.full((len(groups), ranks[0], size), -1.0)
    crowd = np.zeros((len(groups), size), bool)
    for place, group in enumerate(groups):
        overlaps[place, : len(group.scores), : len(group.crowd)] = group.overlaps
        crowd[place, : len(group.crowd)] = group.crowd
    least = np.minimum(IOU_LEVELS, 1 - 1e-10)
    free = np.repeat(~crowd[:, None], len(least), axis=1)
    for rank in range(ranks[0]):
        count = int(np.searchsorted(-ranks, -rank, side="left"))
        overlap = overlaps[:count, rank, None]  # (N,1,G), against (N,T,G)
        enough = overlap >= least[:, None]
        rows = first[:count] + rank
        own = np.where(enough & free[:count], overlap, -1.0)
        chosen = size - 1 - own[..., ::-1].argmax(axis=-1)
        hit = np.take_along_axis(own, chosen[..., None], -1)[..., 0] >= 0
        excused = (enough & crowd[:count, None]).any(axis=-1) & ~hit
        where = np.nonzero(hit)
        free[where[0], where[1], chosen[where]] = False
        matched[rows] = hit | excused
        ignored[rows] = excused
