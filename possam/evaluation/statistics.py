"""Per-image statistics of one evaluation, and a bootstrap over the images.

All metrics are ratios of sums over images, so a resample is a vector of image weights (how often
each image was drawn) and its totals are matrix products. ``scipy.stats.bootstrap`` draws the same
resamples from the same generator, but evaluates them one by one, which is far slower.

Resampling biases some metrics: an image that is drawn twice raises AP (its detections tie), and a
rare class that is not drawn drops out of a mean. Intervals are therefore percentile intervals,
shifted by the bias that the bootstrap estimates, so that they surround the measured value.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from possam.evaluation.instance import IOU_LEVELS, InstanceMatches
from possam.evaluation.options import Bootstrap
from possam.evaluation.panoptic import PanopticCounts
from possam.evaluation.semantic import SemanticCounts
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path
from possam.runtime.reading import check_readable

Weights = NDArray[np.float64]
IMAGE_FILE, MATCH_FILE = "per_image.parquet", "instance_matches.parquet"
CLASS_AGNOSTIC = -1
"""Class number of the rows of class-agnostic counts in ``per_image.parquet``."""

_PANOPTIC = {"tp": np.int64, "fp": np.int64, "fn": np.int64, "iou_sum": np.float64}
_SEMANTIC = ("intersection", "predicted", "target")
_CHUNK = 100


def resample_weights(images: int, *, samples: int, seed: int) -> Weights:
    """How often each image is drawn: (samples, images), each row summing to ``images``."""
    draws = np.random.default_rng(seed).integers(0, images, (samples, images))
    weights = np.zeros((samples, images))
    for row, draw in zip(weights, draws, strict=True):
        row += np.bincount(draw, minlength=images)
    return weights


def centred_interval(
    values: NDArray[np.float64], *, estimate: float, confidence: float
) -> tuple[float, float]:
    """Equal-tailed interval of resampled values (S,), shifted so that their mean is ``estimate``.

    Undefined (NaN) values are left out.
    """
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail]) + (estimate - values.mean())
    return float(low), float(high)


def frames_per_second(
    *seconds: NDArray[np.float64], bootstrap: Bootstrap
) -> tuple[list[float], tuple[float, float]]:
    """Images per second (number over total time) of each training, and the interval of their mean.

    ``seconds``: one array (I,) per training, all of the same images.

    Raises:
        InputError: different numbers of images.
    """
    counts = [len(each) for each in seconds]
    if len(set(counts)) != 1:
        raise InputError(f"seconds of different numbers of images: {counts}; time them again")
    weights = resample_weights(counts[0], samples=bootstrap.samples, seed=bootstrap.seed)
    rates = [counts[0] / float(each.sum()) for each in seconds]
    drawn = np.mean([counts[0] / (weights @ each) for each in seconds], axis=0)
    estimate = float(np.mean(rates))
    return rates, centred_interval(drawn, estimate=estimate, confidence=bootstrap.confidence)


@dataclass(frozen=True)
class Resampled:
    """Metrics in percent: of all images, and of S bootstrap resamples of them, (S,) each."""

    points: dict[str, float]
    samples: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class ImageStatistics:
    """All data that the metrics of one evaluation are computed from; None: not measured.

    Attributes:
        image_ids: ids of the I images, in the order of all rows.
        is_thing, seen: one flag for each of the K classes.
        panoptic, semantic: (I,K); class_agnostic: (I,1).
    """

    image_ids: tuple[int, ...]
    is_thing: tuple[bool, ...]
    seen: tuple[bool, ...]
    panoptic: PanopticCounts | None = None
    class_agnostic: PanopticCounts | None = None
    semantic: SemanticCounts | None = None
    instances: InstanceMatches | None = None

    def metrics(self, weights: Weights | None = None) -> dict[str, NDArray[np.float64]]:
        """Each metric in percent, (S,), for S weightings (S,I); default: every image once, S = 1.

        A metric is NaN where it is undefined, for example ``pq_unseen`` when all classes are seen.
        """
        if weights is None:
            weights = np.ones((1, len(self.image_ids)))
        values: dict[str, NDArray[np.float64]] = {}
        if self.panoptic is not None:
            per_class, occurs = _class_quality(self.panoptic, weights)
            for name, classes in class_subsets(self.is_thing, self.seen).items():
                chosen = np.array(classes, dtype=np.int64)
                values[name] = _mean_where(per_class[0][:, chosen], occurs[:, chosen])
            values["sq"] = _mean_where(per_class[1], occurs)
            values["rq"] = _mean_where(per_class[2], occurs)
        if self.class_agnostic is not None:
            quality, occurs = _class_quality(self.class_agnostic, weights)
            values["pq_class_agnostic"] = _mean_where(quality[0], occurs)
        if self.instances is not None:
            values["map"] = self.instances.average_precision(weights)
        if self.semantic is not None:
            intersection = weights @ self.semantic.intersection
            target = weights @ self.semantic.target
            union = weights @ self.semantic.predicted + target - intersection
            iou = intersection / np.maximum(union, 1.0)
            values["miou"] = _mean_where(iou, target > 0)
            values["miou_union"] = _mean_where(iou, union > 0)
        return {name: 100.0 * value for name, value in values.items()}

    def resampled(self, bootstrap: Bootstrap) -> dict[str, NDArray[np.float64]]:
        """Metrics (S,) in percent on each of the bootstrap's S resamples of the images."""
        images, samples = len(self.image_ids), bootstrap.samples
        weights = resample_weights(images, samples=samples, seed=bootstrap.seed)
        starts = range(0, samples, _CHUNK)
        parts = [self.metrics(weights[start : start + _CHUNK]) for start in starts]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def save(self, directory: Path) -> None:
        """Write one row per image and class that occurs in it, and the matches behind AP."""
        frame = pd.concat([self._class_rows(), self._agnostic_rows()], ignore_index=True)
        with atomic_path(directory / IMAGE_FILE) as path:
            frame.to_parquet(path, index=False)
        if self.instances is None:
            (directory / MATCH_FILE).unlink(missing_ok=True)
            return
        found = self.instances
        bits = 1 << np.arange(len(IOU_LEVELS), dtype=np.int64)
        matches = pd.DataFrame(
            {
                "image_id": np.array(self.image_ids, np.int64)[found.image],
                "class": found.category.astype(np.int32),
                "score": found.score,
                "matched": (found.matched @ bits).astype(np.uint16),
                "ignored": (found.ignored @ bits).astype(np.uint16),
            }
        )
        with atomic_path(directory / MATCH_FILE) as path:
            matches.to_parquet(path, index=False)

    def _class_rows(self) -> pd.DataFrame:
        columns = {} if self.panoptic is None else _columns(self.panoptic)
        if self.semantic is not None:
            pixels = self.semantic
            columns |= {name: getattr(pixels, name) for name in _SEMANTIC}
            columns["union"] = pixels.predicted + pixels.target - pixels.intersection
        if self.instances is not None:
            columns["instances"] = self.instances.targets
        nothing = np.zeros((len(self.image_ids), len(self.is_thing)), bool)
        rows, classes = np.nonzero(sum((table > 0 for table in columns.values()), nothing))
        ids = np.array(self.image_ids, np.int64)
        return pd.DataFrame(
            {"image_id": ids[rows], "class": classes.astype(np.int32)}
            | {name: table[rows, classes] for name, table in columns.items()}
        )

    def _agnostic_rows(self) -> pd.DataFrame:
        # Every image gets such a row, so the file also lists the measured images.
        ids = np.array(self.image_ids, np.int64)
        counts = {} if self.class_agnostic is None else _columns(self.class_agnostic)
        return pd.DataFrame(
            {"image_id": ids, "class": np.full(len(ids), CLASS_AGNOSTIC, np.int32)}
            | {name: table[:, 0] for name, table in counts.items()}
        )

    @classmethod
    def load(
        cls, directory: Path, *, is_thing: Sequence[bool], seen: Sequence[bool]
    ) -> "ImageStatistics":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: a file is missing or lacks a column.
        """
        path = directory / IMAGE_FILE
        frame = _read_table(path, {"image_id", "class"}, groups=(_PANOPTIC, _SEMANTIC))
        is_agnostic = frame["class"] == CLASS_AGNOSTIC
        agnostic, classes = frame[is_agnostic], frame[~is_agnostic]
        ids = agnostic["image_id"].to_numpy(np.int64)
        row = pd.Series(np.arange(len(ids)), index=ids)
        place = (row.loc[classes["image_id"]].to_numpy(), classes["class"].to_numpy())

        def table(name: str, dtype: type) -> NDArray[Any]:
            result: NDArray[Any] = np.zeros((len(ids), len(is_thing)), dtype)
            result[place] = classes[name].to_numpy()
            return result

        panoptic = merged = semantic = instances = None
        if "tp" in frame:
            panoptic = PanopticCounts(*(table(*column) for column in _PANOPTIC.items()))
            merged = PanopticCounts(
                *(agnostic[name].to_numpy(dtype)[:, None] for name, dtype in _PANOPTIC.items())
            )
        if "intersection" in frame:
            semantic = SemanticCounts(*(table(name, np.int64) for name in _SEMANTIC))
        if "instances" in frame:
            matches = _read_table(
                directory / MATCH_FILE, {"image_id", "class", "score", "matched", "ignored"}
            )
            levels = np.arange(len(IOU_LEVELS))
            matched, ignored = (
                (matches[name].to_numpy(np.int64)[:, None] >> levels & 1).astype(bool)
                for name in ("matched", "ignored")
            )
            instances = InstanceMatches(
                row.loc[matches["image_id"]].to_numpy(np.int64),
                matches["class"].to_numpy(np.int64),
                matches["score"].to_numpy(np.float64),
                matched,
                ignored,
                targets=table("instances", np.int64),
            )
        return cls(
            tuple(ids.tolist()), tuple(is_thing), tuple(seen), panoptic, merged, semantic, instances
        )


def class_subsets(is_thing: Sequence[bool], seen: Sequence[bool]) -> dict[str, list[int]]:
    """Class indices that each PQ metric averages over."""
    every = list(range(len(is_thing)))
    return {
        "pq": every,
        "pq_things": [k for k in every if is_thing[k]],
        "pq_stuff": [k for k in every if not is_thing[k]],
        "pq_seen": [k for k in every if seen[k]],
        "pq_unseen": [k for k in every if not seen[k]],
    }


def resample(*statistics: ImageStatistics, bootstrap: Bootstrap) -> Resampled:
    """Metrics of an evaluation, or their means over several (one per training seed).

    The same ``bootstrap`` draws the same images, so results can be compared in pairs.

    Raises:
        InputError: the evaluations were not measured on the same images.
    """
    first = statistics[0].image_ids
    for other in statistics[1:]:
        if other.image_ids != first:
            raise InputError(
                "evaluations that are to be compared or averaged have different images "
                f"({len(first)} and {len(other.image_ids)}); evaluate all on one data set"
            )
    points = [table.metrics() for table in statistics]
    drawn = [table.resampled(bootstrap) for table in statistics]
    return Resampled(
        {name: float(np.mean([point[name][0] for point in points])) for name in points[0]},
        {name: np.mean([draw[name] for draw in drawn], axis=0) for name in points[0]},
    )


def bootstrap_intervals(
    *statistics: ImageStatistics, bootstrap: Bootstrap
) -> dict[str, tuple[float, float]]:
    """Interval of each metric, in percent and within 0..100, from resampled images.

    Arguments and errors as :func:`resample`.
    """
    found = resample(*statistics, bootstrap=bootstrap)
    intervals = {}
    for name, values in found.samples.items():
        point = found.points[name]
        low, high = centred_interval(values, estimate=point, confidence=bootstrap.confidence)
        intervals[name] = (max(low, 0.0), min(high, 100.0)) if low <= high else (low, high)
    return intervals


def defined(values: Mapping[str, float]) -> dict[str, float | None]:
    """``values`` with ``None`` for NaN, which JSON does not have."""
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def defined_intervals(found: Mapping[str, tuple[float, float]]) -> dict[str, list[float] | None]:
    """Intervals for JSON; ``None`` where a metric is undefined."""
    return {name: None if np.isnan(both).any() else list(both) for name, both in found.items()}


def _columns(counts: PanopticCounts) -> dict[str, NDArray[Any]]:
    return dict(zip(_PANOPTIC, (counts.tp, counts.fp, counts.fn, counts.iou), strict=True))


def _read_table(
    path: Path, needed: set[str], *, groups: Iterable[Iterable[str]] = ()
) -> pd.DataFrame:
    """A table that has all ``needed`` columns, and all columns or none of each group."""
    check_readable(path, missing="evaluate the run again")
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are kinds of them
        raise InputError(f"{path}: damaged ({error}); evaluate the run again") from error
    present = set(frame.columns)
    needed = needed.union(*(group for group in map(set, groups) if group & present))
    if missing := needed - present:
        raise InputError(f"{path}: lacks the columns {sorted(missing)}; evaluate the run again")
    return frame


def _class_quality(
    counts: PanopticCounts, weights: Weights
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """PQ, SQ, RQ (3,S,K) in 0..1 of each class, and whether the class occurs (S,K)."""
    tp, iou = weights @ counts.tp, weights @ counts.iou
    errors = weights @ (counts.fp + counts.fn)
    total = np.maximum(tp + 0.5 * errors, 0.5)
    return np.stack([iou / total, iou / np.maximum(tp, 1.0), tp / total]), tp + errors > 0


def _mean_where(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean over the last axis of the chosen entries; NaN where none is chosen."""
    count = chosen.sum(axis=-1)
    total = np.where(chosen, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
