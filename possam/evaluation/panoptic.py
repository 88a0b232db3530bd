"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", 2019), as panopticapi counts it.

The numbers equal panopticapi's to the last digit: pairs are matched in the same order, and sums of
IoUs run over images in the order of the updates. Matches are kept per image for the bootstrap.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from possam.datasets.pixels import runs
from possam.runtime.errors import InputError

VOID = 0
ID_LIMIT = 1 << 24
"""Segment ids are RGB codes: below 2^24. Two of them fit into one int64."""

Pairs = list[tuple[int, int, int]]


class CategoryLike(Protocol):
    """What the evaluator needs to know about a category."""

    @property
    def index(self) -> int: ...


@dataclass(frozen=True)
class PanopticResult:
    """Averages over the ``classes`` classes with a segment in prediction or ground truth.

    ``pq``, ``sq``, ``rq``: fractions in 0..1, NaN if no class of the subset occurs; ``per_class``:
    class index -> (pq, sq, rq), for the classes that occur.
    """

    pq: float
    sq: float
    rq: float
    classes: int
    per_class: dict[int, tuple[float, float, float]]


@dataclass(frozen=True)
class PanopticCounts:
    """Counts (I,K) of I images and K classes: segments, and sums of the IoUs of matches."""

    tp: NDArray[np.int64]
    fp: NDArray[np.int64]
    fn: NDArray[np.int64]
    iou: NDArray[np.float64]


@dataclass
class _Matches:
    """Matching of one image: classes and IoUs of the matches, in order; classes of the misses."""

    matched: list[int] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    false_positives: list[int] = field(default_factory=list)
    false_negatives: list[int] = field(default_factory=list)


def _count(images: Sequence[_Matches], num_classes: int, *, by_image: bool) -> PanopticCounts:
    """Counts (I,K) by image, or (1,K) over all images."""
    rows = len(images) if by_image else 1

    def table(name: str, weights: Sequence[float] | None = None) -> NDArray[Any]:
        classes = [getattr(image, name) for image in images]
        first = np.arange(len(images)) * num_classes * by_image
        place = np.repeat(first, [len(each) for each in classes])
        place += np.fromiter(chain.from_iterable(classes), np.int64)
        return np.bincount(place, weights, minlength=rows * num_classes).reshape(rows, num_classes)

    # bincount adds one by one, in the order of the images, and so rounds as panopticapi does. From
    # Python 3.12 on, sum() does not: it compensates rounding.
    iou = table("matched", [value for image in images for value in image.iou]).astype(np.float64)
    tp, fp, fn = map(table, ("matched", "false_positives", "false_negatives"))
    return PanopticCounts(tp, fp, fn, iou)


def _average(images: Sequence[_Matches], num_classes: int, over: Iterable[int]) -> PanopticResult:
    """The result of all images, averaged over the classes ``over``, in this order."""
    found = _count(images, num_classes, by_image=False)
    columns = (each[0].tolist() for each in (found.tp, found.fp, found.fn, found.iou))
    counts = list(zip(*columns, strict=True))
    pq = sq = rq = 0.0
    per_class = {}
    for category in over:
        tp, fp, fn, iou = counts[category]
        if tp + fp + fn == 0:
            continue
        denominator = tp + 0.5 * fp + 0.5 * fn
        scores = (iou / denominator, iou / tp if tp else 0.0, tp / denominator)
        per_class[category] = scores
        pq, sq, rq = pq + scores[0], sq + scores[1], rq + scores[2]
    n = len(per_class)
    if n == 0:
        return PanopticResult(float("nan"), float("nan"), float("nan"), 0, {})
    return PanopticResult(pq / n, sq / n, rq / n, n, per_class)


def count_array_pairs(target: NDArray[np.integer], predicted: NDArray[np.integer]) -> Pairs:
    """(target id, predicted id, pixels) of all pairs of ids that share a pixel, ascending.

    For a model's maps in memory, since the model takes far longer. The compiled loops of
    :func:`possam.evaluation.run_lengths.count_shared_pixels` would take most of a second to load.

    ``target``, ``predicted``: segment ids (H,W), 0..2^24-1, 0 = void.
    """
    if not target.size:
        return []
    starts, lengths = runs(target, predicted)
    first, second = (ids.ravel()[starts].astype(np.int64) for ids in (target, predicted))
    values, compact = np.unique(first * ID_LIMIT + second, return_inverse=True)
    counts = np.bincount(compact, weights=lengths)  # whole numbers below 2^53: exact
    return [
        (pair // ID_LIMIT, pair % ID_LIMIT, int(count))
        for pair, count in zip(values.tolist(), counts.tolist(), strict=True)
    ]


class _Overlaps(NamedTuple):
    """Pixels shared by segments: (target id, predicted id) -> pixels; areas of all ids but void."""

    pixels: dict[tuple[int, int], int]
    target_area: dict[int, int]
    predicted_area: dict[int, int]

    @classmethod
    def of(cls, pairs: Pairs) -> "_Overlaps":
        target_area, predicted_area = Counter[int](), Counter[int]()
        for t, p, count in pairs:
            target_area[t] += count
            predicted_area[p] += count
        del target_area[VOID], predicted_area[VOID]  # no error if void does not occur: a Counter
        return cls({(t, p): count for t, p, count in pairs}, target_area, predicted_area)


def _match(
    overlaps: _Overlaps, predicted: Mapping[int, int], target: Mapping[int, tuple[int, bool]]
) -> _Matches:
    """Match segments of equal class with IoU above one half; such matches are unique.

    Void pixels of the ground truth count in no union. A predicted segment without a match is
    ignored if more than half of it lies on void or on the crowd region of its class.
    """
    overlap, target_area, predicted_area = overlaps
    result = _Matches()
    matched: tuple[set[int], set[int]] = (set(), set())
    for (t, p), intersection in overlap.items():
        if t == VOID or p == VOID or target[t][1] or target[t][0] != predicted[p]:
            continue
        on_void = overlap.get((VOID, p), 0)
        iou = intersection / (predicted_area[p] + target_area[t] - intersection - on_void)
        if iou > 0.5:
            result.matched.append(predicted[p])
            result.iou.append(iou)
            matched[0].add(t)
            matched[1].add(p)
    crowd = {category: t for t, (category, is_crowd) in target.items() if is_crowd}
    for t, (category, is_crowd) in target.items():
        if not is_crowd and t not in matched[0]:
            result.false_negatives.append(category)
    for p, category in predicted.items():
        if p in matched[1]:
            continue
        ignored = overlap.get((VOID, p), 0)
        if category in crowd:
            ignored += overlap.get((crowd[category], p), 0)
        if ignored / predicted_area[p] <= 0.5:
            result.false_positives.append(category)
    return result


def _merge_classes(
    overlaps: _Overlaps, predicted: Mapping[int, int], target: Mapping[int, tuple[int, bool]]
) -> tuple[_Overlaps, dict[int, int], dict[int, tuple[int, bool]]]:
    """The same image with one class for all segments, and all crowd regions merged into one."""
    crowd = [t for t, (_, is_crowd) in target.items() if is_crowd]
    rename = dict.fromkeys(crowd, crowd[0]) if crowd else {}
    if len(crowd) > 1:
        merged = Counter[tuple[int, int]]()
        for (t, p), count in overlaps.pixels.items():
            merged[rename.get(t, t), p] += count
        overlaps = _Overlaps.of([(t, p, count) for (t, p), count in merged.items()])
    segments = {rename.get(t, t): (0, is_crowd) for t, (_, is_crowd) in target.items()}
    return overlaps, dict.fromkeys(predicted, 0), segments


def check_sizes(where: str, prediction: NDArray[Any], target: NDArray[Any]) -> None:
    """Raise an InputError if a predicted map (H,W) differs in size from the ground truth."""
    if prediction.shape != target.shape:
        raise InputError(
            f"{where}: the prediction has {prediction.shape} (height, width) and the ground "
            f"truth {target.shape}; predictions must have the size of the image"
        )


def image_order(counted: Sequence[int], expected: Sequence[int]) -> list[int]:
    """Positions in ``counted`` of the ``expected`` image ids; an InputError if the ids differ."""
    place = {image_id: index for index, image_id in enumerate(counted)}
    if len(place) != len(counted):
        twice = sorted({i for i in counted if list(counted).count(i) > 1})
        raise InputError(f"image ids {twice[:5]} were predicted twice; keep one prediction each")
    missing, extra = sorted(set(expected) - set(counted)), sorted(set(counted) - set(expected))
    if missing or extra:
        raise InputError(
            f"predictions do not cover the data set: image ids {missing[:5]} lack a prediction, "
            f"{extra[:5]} are not in the data set"
        )
    return [place[image_id] for image_id in expected]


class PanopticEvaluator:
    """Collects matches image by image; ``categories``: all those of the data set, by index."""

    def __init__(self, categories: Sequence[CategoryLike]) -> None:
        if [category.index for category in categories] != list(range(len(categories))):
            raise ValueError("categories must come in index order 0..K-1")
        self.num_classes = len(categories)
        self.image_ids: list[int] = []
        self._classes: list[_Matches] = []
        self._agnostic: list[_Matches] = []

    def update(
        self,
        image_id: int,
        predicted_ids: NDArray[np.integer],
        predicted_segments: Mapping[int, int],
        target_ids: NDArray[np.integer],
        target_segments: Mapping[int, tuple[int, bool]],
    ) -> None:
        """Count one image.

        Args:
            predicted_ids, target_ids: segment ids (H,W), 0 = void.
            predicted_segments: id -> class index.
            target_segments: id -> (class index, is_crowd).

        Raises:
            InputError: different sizes, ids that differ between map and list, unknown classes.
        """
        where = f"image {image_id}"
        check_sizes(where, predicted_ids, target_ids)
        for name, ids in (("predicted", predicted_ids), ("ground truth", target_ids)):
            if ids.size and (ids.min() < 0 or ids.max() >= ID_LIMIT):
                raise InputError(f"{where}: {name} segment ids must be in 0..{ID_LIMIT - 1}")
        pairs = count_array_pairs(target_ids, predicted_ids)
        self.update_pairs(image_id, pairs, predicted_segments, target_segments)

    def update_pairs(
        self,
        image_id: int,
        pairs: Pairs,
        predicted_segments: Mapping[int, int],
        target_segments: Mapping[int, tuple[int, bool]],
    ) -> None:
        """As :meth:`update`, from the result of :func:`count_array_pairs` for the two maps."""
        where = f"image {image_id}"
        self._check(where, "prediction", {p for _, p, _ in pairs}, predicted_segments.keys())
        self._check(where, "ground truth", {t for t, _, _ in pairs}, target_segments.keys())
        unknown = set(predicted_segments.values()) | {c for c, _ in target_segments.values()}
        unknown -= set(range(self.num_classes))
        if unknown:
            raise InputError(
                f"{where}: unknown class indices {sorted(unknown)}; "
                f"the data set has 0..{self.num_classes - 1}"
            )
        overlaps = _Overlaps.of(pairs)
        self._classes.append(_match(overlaps, predicted_segments, target_segments))
        self._agnostic.append(
            _match(*_merge_classes(overlaps, predicted_segments, target_segments))
        )
        self.image_ids.append(image_id)

    def extend(self, other: "PanopticEvaluator") -> None:
        """Add the images that ``other`` counted, after this one's own."""
        self._classes += other._classes
        self._agnostic += other._agnostic
        self.image_ids += other.image_ids

    @staticmethod
    def _check(where: str, side: str, drawn: set[int], listed: Collection[int]) -> None:
        drawn.discard(VOID)
        unlisted, undrawn = sorted(drawn - set(listed)), sorted(set(listed) - drawn)
        if unlisted:
            raise InputError(
                f"{where}: {side}: the PNG has ids {unlisted[:5]} that segments_info lacks; "
                "list them, or draw these pixels as 0 (void)"
            )
        if undrawn:
            raise InputError(
                f"{where}: {side}: segments_info lists ids {undrawn[:5]} without a pixel; "
                "remove them from the list"
            )

    def arrange(self, image_ids: Sequence[int]) -> None:
        """Put the images into the order of ``image_ids``, in which IoUs are summed (and rounded).

        Raises:
            InputError: an image was not counted, was counted twice, or is not in the list.
        """
        order = image_order(self.image_ids, image_ids)
        self._classes = [self._classes[place] for place in order]
        self._agnostic = [self._agnostic[place] for place in order]
        self.image_ids = list(image_ids)

    def result(self, classes: Collection[int] | None = None) -> PanopticResult:
        """Averages over ``classes`` (default: all), in the order given."""
        over = range(self.num_classes) if classes is None else classes
        return _average(self._classes, self.num_classes, over)

    def class_agnostic(self) -> PanopticResult:
        """With all classes merged into one: the quality of segments, whatever their names."""
        return _average(self._agnostic, 1, [0])

    def counts(self) -> PanopticCounts:
        """Counts (I,K), rows in the order of :attr:`image_ids`."""
        return _count(self._classes, self.num_classes, by_image=True)

    def class_agnostic_counts(self) -> PanopticCounts:
        """Counts (I,1) of :meth:`class_agnostic`."""
        return _count(self._agnostic, 1, by_image=True)
