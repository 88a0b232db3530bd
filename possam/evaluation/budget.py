"""The error budget: how much a result would gain with right masks, or with right names.

Two probes are computed from the passes of an evaluation, for its default inference:

- ``ground_truth_masks``: the segments of the ground truth, each named by the model. Its features
  are pooled inside the segment as inside a predicted mask; no segment counts as void.
- ``oracle_labels``: the masks of the model, each with the class of the segment of the ground truth
  that overlaps it best (IoU); masks that overlap none are void. Objectness and expected IoU stay
  the model's, and masks are merged as everywhere.

Where a data set has only label maps, the regions of its classes are the segments.

Shapes: Q masks, G segments, K classes, H W of an image.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from possam.datasets.format import ConvertedDataset
from possam.evaluation.options import GROUND_TRUTH_MASKS, ORACLE_LABELS, PROBES
from possam.evaluation.summary import Evaluators
from possam.model.inference import MaskScores, panoptic_inference, semantic_inference
from possam.model.ops.strips import Geometry, strips
from possam.model.options import InferenceOptions
from possam.model.resolution import ResizedImage

_LOGIT = 20.0


class Truth(NamedTuple):
    """The segments of one image: their map (H, W) int64 of places 1..G, 0 = none; classes (G,).

    ``crowd``: (G,) bool, regions that are no single segments and count only for pixels.
    """

    places: NDArray[np.int64]
    classes: NDArray[np.int64]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(cls, dataset: ConvertedDataset, position: int, *, panoptic: bool) -> "Truth":
        """The segments of the image at ``position``; without ``panoptic``, regions of classes."""
        if panoptic:
            ids, found = dataset.panoptic(position), dataset.images[position].segments
            classes = [segment.category for segment in found]
            crowd = [bool(segment.is_crowd) for segment in found]
            values = np.array([segment.id for segment in found], dtype=np.int64)
        else:
            ids = dataset.semantic(position)
            values = np.unique(ids[ids >= 0]).astype(np.int64)
            classes, crowd = values.tolist(), [False] * len(values)
        order = np.argsort(values)
        places = np.zeros(ids.shape, dtype=np.int64)
        if len(values):
            where = np.searchsorted(values[order], ids).clip(max=len(values) - 1)
            places = np.where(values[order][where] == ids, order[where] + 1, 0)
        return cls(places, np.array(classes, np.int64), np.array(crowd, np.bool_))

    def masks(self, geometry: Geometry, *, count: int) -> Tensor:
        """(count, H', W') logits over the padded image; those after the G-th are empty."""
        places = torch.from_numpy(self.places)[None, None].float()
        content = F.interpolate(places, size=geometry.content, mode="nearest-exact")[0].long()
        numbers = torch.arange(1, count + 1)[:, None, None]
        logits = torch.full((count, *geometry.padded), -_LOGIT)
        inner = logits[:, : geometry.content[0], : geometry.content[1]]
        inner.masked_fill_(content == numbers, _LOGIT)
        return logits


def overlaps(mask_logits: Tensor, truth: Truth, geometry: Geometry) -> Tensor:
    """IoU (Q, G) of the masks (probability at least 0.5) and the segments, 0..1, on all pixels."""
    device, count = mask_logits.device, len(truth.classes)
    places = torch.from_numpy(truth.places).to(device)
    shared = torch.zeros(len(mask_logits), count + 1, device=device, dtype=torch.float64)
    for rows, strip in strips(mask_logits, geometry):
        inside = (strip >= 0.5).flatten(1).float()
        one_hot = F.one_hot(places[rows].flatten(), count + 1).float()
        shared += (inside @ one_hot).double()  # whole numbers below 2^24: exact
    areas = torch.bincount(places.flatten(), minlength=count + 1)[1:]
    union = shared.sum(1, keepdim=True) + areas - shared[:, 1:]
    return (shared[:, 1:] / union.clamp(min=1)).float()


def oracle_scores(
    mask_logits: Tensor, scores: MaskScores, truth: Truth, *, image: int, geometry: Geometry
) -> MaskScores:
    """The scores of one image, (1, Q, ...), with the classes of :data:`ORACLE_LABELS`."""
    probs = torch.zeros_like(scores.class_probs[image])
    void = torch.ones_like(scores.void[image])
    if len(truth.classes):
        best, segment = overlaps(mask_logits, truth, geometry).max(-1)
        classes = torch.from_numpy(truth.classes).to(segment.device)[segment]
        probs.scatter_(-1, classes[:, None], (best > 0).to(probs.dtype)[:, None])
        void = torch.where(best > 0, scores.void[image], void)
    return MaskScores(probs[None], void[None], scores.iou[image][None])


class BudgetProbes:
    """Collects the probes of one evaluation, image by image.

    Args:
        metrics: those of the benchmark; panoptic and semantic ones are probed.
    """

    def __init__(self, dataset: ConvertedDataset, metrics: Sequence[str]) -> None:
        self.dataset, self.metrics = dataset, [m for m in metrics if m != "instance"]
        self.evaluators = {name: Evaluators.of(dataset, self.metrics) for name in PROBES}
        self._is_thing = np.array([category.is_thing for category in dataset.categories])

    def truths(
        self, positions: Sequence[int], test: ResizedImage, *, padded: tuple[int, int]
    ) -> tuple[list[Truth], Tensor]:
        """The segments of images of the size of ``test``, and their masks as logits.

        The masks are (B, G, H', W') over the images ``padded`` to (H', W'); G is the largest number
        of segments (at least 1), and those that an image lacks are empty.
        """
        panoptic = "panoptic" in self.metrics
        found = [Truth.of(self.dataset, position, panoptic=panoptic) for position in positions]
        geometry = Geometry(padded=padded, content=test.content_size, output=test.original_size)
        most = max(1, *(len(truth.classes) for truth in found))
        return found, torch.stack([truth.masks(geometry, count=most) for truth in found])

    def count_named(self, position: int, truth: Truth, labels: NDArray[np.int64]) -> None:
        """Count the segments of the ground truth with the model's ``labels``, (G or more,)."""
        labels = labels[: len(truth.classes)]
        single = np.flatnonzero(~truth.crowd)
        ids_of = np.zeros(len(truth.classes) + 1, dtype=np.int64)
        segments: dict[int, int] = {}
        newest: dict[int, int] = {}  # segments of one stuff class become one, as everywhere
        drawn = np.bincount(truth.places.ravel(), minlength=len(ids_of))
        for place in single[drawn[single + 1] > 0]:
            label = int(labels[place])
            if self._is_thing[label] or label not in newest:
                newest[label] = len(segments) + 1
                segments[newest[label]] = label
            ids_of[place + 1] = newest[label]
        painted = np.concatenate([[-1], labels])[truth.places]
        self._update(GROUND_TRUTH_MASKS, position, ids_of[truth.places], segments, painted)

    def count_oracle(
        self,
        position: int,
        mask_logits: Tensor,
        scores: MaskScores,
        truth: Truth,
        *,
        inference: InferenceOptions,
        shared: dict[str, Any],
    ) -> None:
        """Count the model's masks with the oracle's labels; arguments as of an evaluation."""
        geometry = shared["geometry"]
        own = oracle_scores(mask_logits, scores, truth, image=shared["image"], geometry=geometry)
        shared = shared | {"image": 0}
        ids, segments, labels = np.zeros(geometry.output, np.int64), dict[int, int](), None
        if "panoptic" in self.metrics:
            found_ids, found = panoptic_inference(
                mask_logits,
                own,
                is_thing=torch.from_numpy(self._is_thing),
                mask_filter=inference.mask_filter,
                object_threshold=inference.object_threshold,
                overlap_threshold=inference.overlap_threshold,
                **shared,
            )
            ids, segments = found_ids.cpu().numpy(), {each.id: each.category for each in found}
        if "semantic" in self.metrics:
            labels = semantic_inference(mask_logits, own, **shared).cpu().numpy()
        self._update(ORACLE_LABELS, position, ids, segments, labels)

    def _update(
        self,
        name: str,
        position: int,
        ids: NDArray[np.integer],
        segments: dict[int, int],
        labels: NDArray[np.integer] | None,
    ) -> None:
        record, evaluators = self.dataset.images[position], self.evaluators[name]
        if evaluators.panoptic is not None:
            truth = {s.id: (s.category, bool(s.is_crowd)) for s in record.segments}
            true_ids = self.dataset.panoptic(position)
            evaluators.panoptic.update(record.id, ids, segments, true_ids, truth)
        if evaluators.semantic is not None and labels is not None:
            evaluators.semantic.update(record.id, labels, self.dataset.semantic(position))
