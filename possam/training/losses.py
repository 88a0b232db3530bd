"""The training criterion (paper, section 3.6; Mask2Former, sections 3.3 and 4.1).

Shape letters: L decoder outputs, B images, Q queries, K classes, N targets of an image (padded),
M matched pairs of all layers and images, P points, H W target size, h w mask-logit size.

Each decoder output is matched and penalised on its own; the terms of all outputs are summed. Mask
terms are summed over matched pairs and divided by the number of target masks of the whole batch, so
that the losses of the micro-batches add up to the batch's loss, however the batch is split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, log_softmax

from possam.model.ops.resampling import resample_area
from possam.training.matching import (
    Matches,
    PaddedTargets,
    assign,
    matching_costs,
    sample_points,
)
from possam.training.options import LossOptions
from possam.training.targets import Target

TERMS = ("class", "bce", "dice", "iou")


@dataclass(frozen=True)
class Losses:
    """Result of the criterion.

    Attributes:
        total: scalar, the weighted sum over terms and layers.
        terms: unweighted values (L,) by the names of ``TERMS``, detached.
        matches: the assignment that the terms were computed with.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    matches: Matches


class Criterion:
    """Class cross-entropy, point-sampled BCE and dice, and squared error of the predicted IoU."""

    def __init__(self, options: LossOptions) -> None:
        self.options = options
        self.weights = {name: getattr(options, f"{name}_weight") for name in TERMS}

    def __call__(
        self,
        *,
        mask_logits: Tensor | Sequence[Tensor],
        class_logits: Tensor,
        iou_logits: Tensor | None,
        targets: Sequence[Target],
        generator: torch.Generator,
        counts: Sequence[int] | None = None,
    ) -> Losses:
        """Match every layer and sum its losses; computed in float32.

        Args:
            mask_logits: (L, B, Q, h, w), or its L layers.
            class_logits: (L, B, Q, K+1), void last.
            iou_logits: (L, B, Q), or None for a model without IoU head (its term is 0).
            generator: source of the random points, on the device of the tensors.
            counts: targets per image of the whole batch, if the B images are a micro-batch of it.
        """
        if not isinstance(mask_logits, Tensor):
            mask_logits = torch.stack(tuple(mask_logits))
        padded = PaddedTargets.stack(targets)
        counts = padded.counts if counts is None else counts
        masks_in_all = max(1, sum(counts))
        class_logits = class_logits.float()
        matches = self.match(mask_logits, class_logits, padded, generator=generator)
        pairs = (matches.layer, matches.image, matches.query)
        masks = mask_logits[pairs].float()
        points = uncertain_points(masks.detach(), self.options, generator=generator)
        layers = len(mask_logits)
        truth = _sample_targets(padded, points, matches, layers=layers)
        samples = sample_points(masks.unsqueeze(1), points).squeeze(1)
        of_pairs = {
            "bce": binary_cross_entropy_with_logits(samples, truth, reduction="none").mean(1),
            "dice": dice_loss(samples.sigmoid(), truth),
        }
        if iou_logits is None:
            of_pairs["iou"] = torch.zeros_like(of_pairs["dice"])
        else:
            found = iou_logits.float()[pairs].sigmoid()
            of_pairs["iou"] = (found - mask_iou(masks.detach(), padded, matches)) ** 2
        values = {
            "class": self.class_loss(class_logits, padded, matches, counts),
            **{
                # (M,) -> (L,): sum over the pairs of a layer, divided by the number of target masks
                name: pair.new_zeros(layers).index_add(0, matches.layer, pair) / masks_in_all
                for name, pair in of_pairs.items()
            },
        }
        total = torch.stack([self.weights[name] * values[name].sum() for name in TERMS]).sum()
        return Losses(total, {name: values[name].detach() for name in TERMS}, matches)

    @torch.no_grad()
    def match(
        self,
        mask_logits: Tensor,
        class_logits: Tensor,
        padded: PaddedTargets,
        *,
        generator: torch.Generator,
    ) -> Matches:
        """Hungarian matching at ``points`` uniform points per image, which all layers share."""
        shape = (len(padded.counts), self.options.points, 2)
        points = torch.rand(shape, generator=generator, device=generator.device)
        truth = sample_points(padded.masks, points)
        costs = [
            matching_costs(
                mask_samples=sample_points(logits.detach().float(), points),
                class_probs=scores.softmax(-1),
                target_samples=truth,
                labels=padded.labels,
                options=self.options,
            )
            for logits, scores in zip(mask_logits, class_logits.detach(), strict=True)
        ]
        return assign(torch.stack(costs), padded.counts)

    def class_loss(
        self,
        class_logits: Tensor,
        padded: PaddedTargets,
        matches: Matches,
        counts: Sequence[int],
    ) -> Tensor:
        """(L,) weighted cross-entropy; unmatched queries are void, with weight ``void_weight``.

        Divided by the layer's sum of weights over the whole batch, as ``torch.nn.CrossEntropyLoss``
        does. ``counts`` gives the number of matched queries per image before any matching.
        """
        void = class_logits.shape[-1] - 1
        goal = torch.full(class_logits.shape[:3], void, device=class_logits.device)
        labels = padded.labels[matches.image, matches.target]
        goal[matches.layer, matches.image, matches.query] = labels
        weight = torch.where(goal == void, self.options.void_weight, 1.0)
        cost = -log_softmax(class_logits, -1).gather(-1, goal.unsqueeze(-1)).squeeze(-1)
        queries = class_logits.shape[2]
        elsewhere = self._weight(counts, queries) - self._weight(padded.counts, queries)
        in_all = weight.flatten(1).sum(1) + elsewhere
        # A step without any target weighs nothing if void weighs 0: its loss is 0, not 0 / 0.
        return (cost * weight).flatten(1).sum(1) / in_all.clamp(min=torch.finfo(in_all.dtype).tiny)

    def _weight(self, counts: Sequence[int], queries: int) -> float:
        """Weight of all queries of images with ``counts`` targets."""
        matched = sum(min(queries, count) for count in counts)
        return matched + self.options.void_weight * (queries * len(counts) - matched)


def dice_loss(probs: Tensor, truth: Tensor) -> Tensor:
    """(M,) dice losses, smoothed by 1, of (M, P) probabilities and target values."""
    overlap = 2.0 * (probs * truth).sum(1) + 1.0
    return 1.0 - overlap / (probs.sum(1) + truth.sum(1) + 1.0)


@torch.no_grad()
def uncertain_points(logits: Tensor, options: LossOptions, *, generator: torch.Generator) -> Tensor:
    """Points where the masks are least certain, and uniform ones (PointRend, section 3.2).

    Args:
        logits: (M, h, w) mask logits.
        options: ``points`` (P) per mask; of ``oversample * P`` candidates, the ``importance * P``
            with the smallest absolute logits are taken.
        generator: on the device of ``logits``.

    Returns:
        (M, P, 2) in 0..1 as (x, y), the uncertain ones first.
    """
    masks, count = len(logits), options.points
    certain = int(options.importance * count)
    candidates = torch.rand(
        masks, int(count * options.oversample), 2, generator=generator, device=logits.device
    )
    doubt = sample_points(logits.unsqueeze(1), candidates).squeeze(1).abs_()
    best = doubt.topk(certain, dim=1, largest=False, sorted=False).indices
    chosen = candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
    uniform = torch.rand(masks, count - certain, 2, generator=generator, device=logits.device)
    return torch.cat([chosen, uniform], 1)


@torch.no_grad()
def _sample_targets(
    padded: PaddedTargets, points: Tensor, matches: Matches, *, layers: int
) -> Tensor:
    """(M, P) target values at each pair's own points, without a copy of a mask per layer."""
    images, most = padded.labels.shape
    flat = matches.image * most + matches.target
    grid = points.new_zeros(images * most, layers, points.shape[1], 2)
    grid[flat, matches.layer] = points
    values = sample_points(padded.masks.flatten(0, 1).unsqueeze(1), grid.flatten(1, 2))
    return values.view(images * most, layers, points.shape[1])[flat, matches.layer]


@torch.no_grad()
def mask_iou(logits: Tensor, padded: PaddedTargets, matches: Matches) -> Tensor:
    """(M,) IoU of the binarised predictions (logit > 0) with their targets.

    Compared at the resolution of the logits: a pixel belongs to a target if at least half of its
    area does. A pair without any pixel has IoU 0.
    """
    size = (logits.shape[-2], logits.shape[-1])
    small = (resample_area(padded.masks, size) >= 0.5).flatten(2)
    truth = small[matches.image, matches.target].float()
    found = (logits > 0).flatten(1).float()
    overlap = (truth * found).sum(1)
    return overlap / (truth.sum(1) + found.sum(1) - overlap).clamp(min=1.0)
