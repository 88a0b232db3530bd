"""Pictures with panoptic ground truth and prediction, drawn at random, and panopticapi's verdict.

Several pictures are one call of panopticapi, which reads files: that makes thousands affordable.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from possam.evaluation.panoptic import PanopticEvaluator
from possam.evaluation.run_lengths import RunLengths
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity

evaluator = LazyModule("panopticapi.evaluation")
utilities = LazyModule("panopticapi.utils")


@dataclass(frozen=True)
class Kind:
    """A category, as far as PQ is concerned."""

    index: int
    is_thing: bool


@dataclass
class Picture:
    """Prediction and ground truth of one image: ids, id -> class, id -> (class, is crowd)."""

    predicted: np.ndarray
    predicted_segments: dict[int, int]
    target: np.ndarray
    target_segments: dict[int, tuple[int, bool]]


def kinds(count: int) -> list[Kind]:
    return [Kind(index, index % 2 == 0) for index in range(count)]


def ids(rows: list[list[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int32)


def draw(runs: RunLengths) -> np.ndarray:
    """The pixels of a map (H,W)."""
    height, width = runs.shape
    first = np.repeat(np.arange(height), np.diff(runs.rows)) * width + runs.starts
    lengths = np.diff(np.append(first, height * width))
    return np.repeat(runs.values, lengths).reshape(height, width)


def evaluate(pictures: Sequence[Picture], count: int) -> PanopticEvaluator:
    evaluator = PanopticEvaluator(kinds(count))
    for number, p in enumerate(pictures):
        evaluator.update(number, p.predicted, p.predicted_segments, p.target, p.target_segments)
    return evaluator


def write(pictures: Sequence[Picture], count: int, folder: Path) -> tuple[dict, dict]:
    """Write the PNGs into ``target`` and ``predicted``; both sides' JSON, in COCO's format."""
    categories = [{"id": k.index, "isthing": int(k.is_thing)} for k in kinds(count)]
    sides = []
    for side in ("target", "predicted"):
        (folder / side).mkdir(parents=True, exist_ok=True)
        annotations = []
        for number, picture in enumerate(pictures):
            drawn = getattr(picture, side)
            name = f"{number}.png"
            colours = utilities.id2rgb(drawn.astype(np.uint32))
            Image.fromarray(colours).save(folder / side / name)
            values, counts = np.unique(drawn, return_counts=True)
            areas = dict(zip(values.tolist(), counts.tolist(), strict=True))
            info = []
            for key, value in getattr(picture, f"{side}_segments").items():
                category, crowd = value if isinstance(value, tuple) else (value, False)
                info.append(
                    {"id": key, "category_id": category, "area": areas[key], "iscrowd": int(crowd)}
                )
            annotations.append({"image_id": number, "file_name": name, "segments_info": info})
        sides.append({"annotations": annotations, "categories": categories})
    return sides[0], sides[1]


def panopticapi(
    target: Mapping[str, Any], predicted: Mapping[str, Any], *, folders: tuple[Path, Path]
) -> tuple[dict[int, Any], Any]:
    """Categories, and panopticapi's totals of two COCO panoptic JSONs as summed in one process."""
    guess = {annotation["image_id"]: annotation for annotation in predicted["annotations"]}
    pairs = [(annotation, guess[annotation["image_id"]]) for annotation in target["annotations"]]
    categories = {category["id"]: category for category in target["categories"]}
    with contextlib.redirect_stdout(io.StringIO()):
        totals = evaluator.pq_compute_single_core(0, pairs, *map(str, folders), categories)
    return categories, totals


def same_quality(
    parity: Parity, ours: PanopticEvaluator, categories: Mapping[int, Any], totals: Any
) -> None:
    """PQ, SQ, RQ of all classes, things, stuff and each class are the same doubles; so are counts.

    Three comparisons, one for each subset; a subset without a segment is undefined in ours.
    """
    counts = ours.counts()
    for k in categories:
        stat = totals.pq_per_cat[k]
        counted = [int(table[:, k].sum()) for table in (counts.tp, counts.fp, counts.fn)]
        assert counted == [stat.tp, stat.fp, stat.fn]
    for wanted in (None, True, False):
        subset = [
            k for k, kind in categories.items() if wanted is None or kind["isthing"] == wanted
        ]
        result = ours.result(subset)
        occurring = [
            k
            for k in subset
            if totals.pq_per_cat[k].tp + totals.pq_per_cat[k].fp + totals.pq_per_cat[k].fn
        ]
        assert list(result.per_class) == occurring
        if not occurring:
            assert np.isnan([result.pq, result.sq, result.rq]).all()
            continue
        average, per_class = totals.pq_average(categories, isthing=wanted)
        names = ("pq", "sq", "rq")
        theirs = [average[name] for name in names]
        theirs += [per_class[k][name] for k in occurring for name in names]
        found = [result.pq, result.sq, result.rq]
        found += [value for values in result.per_class.values() for value in values]
        parity.equal(found, theirs)
        assert found == theirs and result.classes == average["n"]


def compare(parity: Parity, pictures: Sequence[Picture], count: int, folder: Path) -> None:
    """Our evaluator and panopticapi on the same pictures, through files in ``folder``."""
    target, predicted = write(pictures, count, folder)
    folders = (folder / "target", folder / "predicted")
    same_quality(
        parity, evaluate(pictures, count), *panopticapi(target, predicted, folders=folders)
    )


def random_picture(
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    classes: int,
    segments: int,
    top_id: int,
    void: float,
    crowd: float,
) -> Picture:
    """Ground truth in blocks; a prediction that keeps, frays, renames or drops segments.

    Args:
        segments: at most; more than 16 are strewn pixel by pixel.
        top_id: ids are below it. void, crowd: shares of void pixels and of crowd regions.
    """

    def new_ids() -> np.ndarray:
        return 1 + rng.choice(top_id - 1, size=segments, replace=False)

    block = 3 if segments <= 16 else 1
    choice = rng.integers(0, segments, size)
    blocks = np.repeat(np.repeat(choice[::block, ::block], block, 0), block, 1)
    smooth = blocks[: size[0], : size[1]]
    keys, new_keys = new_ids(), new_ids()
    target = np.where(rng.random(size) < void, 0, keys[smooth])
    fraying = rng.uniform(0, 0.4)
    frayed = np.where(rng.random(size) < fraying, choice, smooth)
    kept = rng.random(segments) < 0.9
    predicted = np.where(kept[frayed], new_keys[frayed], 0)
    if rng.random() < 0.1:
        predicted = np.zeros_like(predicted)
    classes_of = rng.integers(0, classes, segments)
    renamed = rng.random(segments) < 0.3
    changed = np.where(renamed, rng.integers(0, classes, segments), classes_of)
    crowded = rng.random(segments) < crowd
    in_target, in_predicted = set(target.flat), set(predicted.flat)
    return Picture(
        predicted,
        {
            key: category
            for key, category in zip(new_keys.tolist(), changed.tolist(), strict=True)
            if key in in_predicted
        },
        target,
        {
            key: (category, is_crowd)
            for key, category, is_crowd in zip(
                keys.tolist(), classes_of.tolist(), crowded.tolist(), strict=True
            )
            if key in in_target
        },
    )
