"""What better labels and what better masks would give: mIoU of one model in three ways.

``own``: its segments with its labels; ``oracle_labels``: its segments, each with the class that
most of its pixels have; ``ground_truth_masks``: the true segments, each with the label that the
model gives to its mask of the highest IoU with it.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import size_batches
from possam.evaluation.semantic import SemanticEvaluator
from possam.model.inference import Geometry, MaskScores, panoptic_inference
from possam.model.ops.strips import full_probabilities
from possam.model.options import InferenceOptions
from possam.model.resolution import resize_for_test
from possam.model.segmenter import RawPrediction, Segmenter
from possam.runtime.progress import Progress

WAYS = ("own", "oracle_labels", "ground_truth_masks")


def oracle_labels(ids: NDArray[np.integer], truth: NDArray[np.integer]) -> NDArray[np.int64]:
    """The commonest true class of each segment, (H, W); -1 is void in all three maps.

    ``ids``: segments from 0; ``truth``: class indices. A segment without a labelled pixel is void.
    """
    known = (ids >= 0) & (truth >= 0)
    votes = np.zeros((int(ids.max(initial=-1)) + 2, int(truth.max(initial=0)) + 1), np.int64)
    np.add.at(votes, (ids[known], truth[known]), 1)
    best = np.where(votes.any(1), votes.argmax(1), -1)  # the last row, of ids -1, has no votes
    return np.asarray(best[ids], np.int64)


def labels_of_true_masks(
    true_ids: NDArray[np.integer], masks: Tensor, labels: Tensor
) -> NDArray[np.int64]:
    """Every true segment with the label of the mask that fits it best, (H, W); 0 is void, then -1.

    ``true_ids`` (H, W); ``masks`` (Q, H, W) bool; ``labels`` (Q,) class indices.
    """
    result = np.full(true_ids.shape, -1, np.int64)
    flat = masks.flatten(1).float()
    area = flat.sum(1)
    for number in np.unique(true_ids[true_ids > 0]).tolist():
        inside = true_ids == number
        target = torch.from_numpy(inside).flatten().to(flat)
        both = flat @ target
        iou = both / (area + target.sum() - both)
        result[inside] = int(labels[int(iou.argmax())])
    return result


@torch.inference_mode()
def label_budget(
    segmenter: Segmenter,
    dataset: ConvertedDataset,
    *,
    score: Callable[[RawPrediction], MaskScores],
    inference: InferenceOptions,
    batch_size: int,
) -> dict[str, float]:
    """mIoU in percent for each of :data:`WAYS`, over the classes of the ground truth.

    ``score`` classifies masks; ``inference``: test resolution and the thresholds of merging.
    """
    counts = {way: SemanticEvaluator(len(dataset.categories)) for way in WAYS}
    # As if all were things: segments of one label, which may be wrong, must not become one.
    things = torch.ones(len(dataset.categories), dtype=torch.bool)
    with Progress(len(dataset), label="error budget", unit="images") as progress:
        for positions in size_batches(dataset, batch_size):
            pixels = [torch.from_numpy(dataset.image(k)).permute(2, 0, 1) for k in positions]
            tests = [resize_for_test(image, inference.resolution) for image in pixels]
            raw = segmenter(torch.stack([test.pixels for test in tests]))
            scores = score(raw)
            for row, (position, test) in enumerate(zip(positions, tests, strict=True)):
                geometry = Geometry(
                    padded=raw.padded_size, content=test.content_size, output=test.original_size
                )
                masks = full_probabilities(raw.mask_logits[row], geometry)
                assert masks is not None  # scenes are small
                found_ids, found = panoptic_inference(
                    raw.mask_logits[row],
                    scores,
                    image=row,
                    geometry=geometry,
                    is_thing=things,
                    mask_filter=inference.mask_filter,
                    object_threshold=inference.object_threshold,
                    overlap_threshold=inference.overlap_threshold,
                    probabilities=masks,
                )
                ids = found_ids.numpy().astype(np.int64) - 1
                own = np.array([*(each.category for each in found), -1])[ids]
                truth = dataset.semantic(position)
                maps = {
                    "own": own,
                    "oracle_labels": oracle_labels(ids, truth),
                    "ground_truth_masks": labels_of_true_masks(
                        dataset.panoptic(position), masks >= 0.5, scores.labels[row]
                    ),
                }
                for way, labels in maps.items():
                    counts[way].update(position, labels, truth)
            progress.update(len(positions))
    return {way: 100 * count.result().miou for way, count in counts.items()}
