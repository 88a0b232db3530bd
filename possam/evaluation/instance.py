"""Mask average precision (COCO: IoU 0.50 to 0.95, at most 100 detections an image and class).

pycocotools matches detections with the ground truth; the matches are kept, and precision is
accumulated from them here, with a weight for each image. With weights of one that equals
``COCOeval.accumulate`` exactly; with multinomial weights it is the AP of a bootstrap resample.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from possam.errors import InputError

MAX_DETECTIONS = 100
ALL_AREAS = [0.0, 1e10]
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
IOU_LEVELS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class InstanceMatches:
    """D detections, sorted by class and then image; T IoU levels; I images; K classes.

    Attributes:
        image (D,) int64: row of the image; category (D,) int64; score (D,) float64.
        matched, ignored (D,T) bool: matched with an object; neither right nor wrong (on a crowd).
        targets (I,K) int64: objects to find.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    score: NDArray[np.float64]
    matched: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    targets: NDArray[np.int64]

    def precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Interpolated precision (S,T,R,K) of S weightings (S,I); NaN: nothing to find."""
        samples, levels = len(weights), self.matched.shape[1]
        num_classes = self.targets.shape[1]
        result = np.full((samples, levels, len(RECALL_LEVELS), num_classes), np.nan)
        for category in np.flatnonzero(self.targets.any(axis=0)):
            result[..., category] = self._class_precision(int(category), weights)
        return result

    def average_precision(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """AP (S,) in 0..1 of each weighting (S,I): mean over levels and classes with objects."""
        num_classes = self.targets.shape[1]
        per_class = np.full((len(weights), num_classes), np.nan)
        for category in np.flatnonzero(self.targets.any(axis=0)):
            precision = self._class_precision(int(category), weights)
            per_class[:, category] = precision.mean(axis=(1, 2))
        present = ~np.isnan(per_class)
        total = np.where(present, per_class, 0.0).sum(axis=1)
        return np.divide(
            total, present.sum(1), out=np.full(len(weights), np.nan), where=present.any(axis=1)
        )

    def _class_precision(self, category: int, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(S,T,R). Precision peaks at true positives, so only these points need an envelope."""
        rows = np.flatnonzero(self.category == category)
        rows = rows[np.argsort(-self.score[rows], kind="stable")]
        objects = weights @ self.targets[:, category].astype(np.float64)
        weight = weights[:, self.image[rows]]
        matched, ignored = self.matched[rows], self.ignored[rows]
        result = np.zeros((len(weights), matched.shape[1], len(RECALL_LEVELS)))
        counted_all = np.cumsum(weight, axis=1)
        for level in range(matched.shape[1]):
            hits = np.flatnonzero(matched[:, level] & ~ignored[:, level])
            if not hits.size:
                continue
            skipped = ignored[:, level]
            if skipped.any():
                counted = np.cumsum(weight * ~skipped, axis=1)[:, hits]
            else:
                counted = counted_all[:, hits]
            found = np.cumsum(weight[:, hits], axis=1)
            precision = found / (counted + np.spacing(1))
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for sample, total in enumerate(objects):
                if total:
                    place = np.searchsorted(found[sample] / total, RECALL_LEVELS, side="left")
                    reached = place < hits.size
                    result[sample, level, reached] = precision[sample, place[reached]]
        result[objects == 0] = np.nan
        return result


class InstanceEvaluator:
    """Collects detections and matches them with COCO-format ground truth.

    Args:
        instances: COCO instances JSON: category ids 0..K-1, things only, RLE or polygons.
        image_ids: the images that count, in the order of the per-image statistics.
        num_classes: K, of all categories, stuff included.
    """

    def __init__(
        self, instances: dict[str, Any], *, image_ids: Sequence[int], num_classes: int
    ) -> None:
        self._image_ids = list(image_ids)
        self._num_classes = num_classes
        self._things = sorted(int(category["id"]) for category in instances["categories"])
        images = {image["id"]: image for image in instances["images"]}
        missing = [i for i in self._image_ids if i not in images]
        if missing:
            raise InputError(f"instances.json: images: lacks ids {missing[:5]}; convert again")
        self._images = [images[i] for i in self._image_ids]
        # pycocotools writes 0 for "not matched": annotation ids must start at 1.
        wanted = set(self._image_ids)
        self._targets = [
            {**annotation, "id": number}
            for number, annotation in enumerate(
                (a for a in instances["annotations"] if a["image_id"] in wanted), start=1
            )
        ]
        self._detections: list[dict[str, Any]] = []

    def update(
        self,
        image_id: int,
        masks: NDArray[np.bool_],
        labels: NDArray[np.integer],
        scores: NDArray[np.floating],
    ) -> None:
        """Add the detections of one image: masks (M,H,W) bool, class indices (M,), scores (M,)."""
        if not len(masks):
            return
        encoded = rle.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        for code, label, score in zip(encoded, labels.tolist(), scores.tolist(), strict=True):
            self._detections.append(
                {
                    "id": len(self._detections) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "score": score,
                    "segmentation": code,
                    "area": float(rle.area(code)),
                    "iscrowd": 0,
                }
            )

    def finish(self) -> InstanceMatches:
        """Match all detections with all objects."""
        categories = [{"id": index} for index in self._things]
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(
                self._index(self._targets, categories),
                self._index(self._detections, categories),
                "segm",
            )
            parameters = evaluation.params
            parameters.areaRng, parameters.areaRngLbl = [ALL_AREAS], ["all"]
            parameters.maxDets = [MAX_DETECTIONS]
            parameters.iouThrs = IOU_LEVELS
            evaluation.evaluate()
        return self._collect([match for match in evaluation.evalImgs if match is not None])

    def _index(self, annotations: list[dict[str, Any]], categories: list[dict[str, int]]) -> COCO:
        coco = COCO()
        coco.dataset = {
            "images": self._images,
            "annotations": annotations,
            "categories": categories,
        }
        coco.createIndex()
        return coco

    def _collect(self, matches: list[dict[str, Any]]) -> InstanceMatches:
        row = {image_id: index for index, image_id in enumerate(self._image_ids)}
        targets = np.zeros((len(self._image_ids), self._num_classes), np.int64)
        image, category, score = [], [], []
        matched = [np.zeros((len(IOU_LEVELS), 0), bool)]
        ignored = [np.zeros((len(IOU_LEVELS), 0), bool)]
        for match in matches:
            index, label = row[int(match["image_id"])], int(match["category_id"])
            targets[index, label] += int(np.count_nonzero(np.asarray(match["gtIgnore"]) == 0))
            count = len(match["dtScores"])
            image += [index] * count
            category += [label] * count
            score += match["dtScores"]
            matched.append(np.asarray(match["dtMatches"], dtype=bool))
            ignored.append(np.asarray(match["dtIgnore"], dtype=bool))
        return InstanceMatches(
            image=np.array(image, np.int64),
            category=np.array(category, np.int64),
            score=np.array(score, np.float64),
            matched=np.concatenate(matched, axis=1).T,
            ignored=np.concatenate(ignored, axis=1).T,
            targets=targets,
        )
