"""Bipartite matching of queries to target segments (Mask2Former, section 3.3; DETR's loss).

Shape letters: L decoder outputs, B images, Q queries, N targets of an image (padded), K classes,
P points, H W target size, h w mask-logit size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import grid_sample

from possam.runtime.errors import InputError
from possam.training.options import LossOptions
from possam.training.targets import Target, send


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples; a map counts as 0 beyond its border, which shows half a pixel inside it.

    Args:
        maps: (M, C, h, w) float.
        points: (M, P, 2) in 0..1 as (x, y); the corners of the map are 0 and 1, not pixel centres.

    Returns:
        (M, C, P).
    """
    return grid_sample(maps, (2.0 * points - 1.0).unsqueeze(2), align_corners=False).squeeze(3)


@dataclass(frozen=True)
class PaddedTargets:
    """The targets of a batch as one block.

    Attributes:
        masks: (B, N, H, W) float32, 0 or 1; 0 beyond an image's count.
        labels: (B, N) int64; 0 beyond the count.
        counts: targets per image.
    """

    masks: Tensor
    labels: Tensor
    counts: tuple[int, ...]

    @staticmethod
    def stack(targets: Sequence[Target]) -> "PaddedTargets":
        """Pad to the largest count of the batch; masks of different sizes are an InputError."""
        sizes = {tuple(target.masks.shape[1:]) for target in targets}
        if len(sizes) != 1:
            raise InputError(f"targets of one batch must have one mask size, got {sorted(sizes)}")
        counts = tuple(len(target.labels) for target in targets)
        first = targets[0]
        shape = (len(targets), max(counts))
        masks = torch.zeros(*shape, *first.masks.shape[1:], device=first.masks.device)
        labels = torch.zeros(shape, dtype=torch.int64, device=first.labels.device)
        for image, target in enumerate(targets):
            masks[image, : counts[image]] = target.masks
            labels[image, : counts[image]] = target.labels
        return PaddedTargets(masks=masks, labels=labels, counts=counts)


def matching_costs(
    *,
    mask_samples: Tensor,
    class_probs: Tensor,
    target_samples: Tensor,
    labels: Tensor,
    options: LossOptions,
) -> Tensor:
    """Cost of every query for every target, both sampled at the same points.

    The weighted sum of minus the probability of the target's class, the binary cross-entropy
    averaged over points, and the dice cost (smoothed by 1, as Mask2Former's).

    Args:
        mask_samples: (B, Q, P) mask logits at the points.
        class_probs: (B, Q, K+1) softmax with void.
        target_samples: (B, N, P) in 0..1; labels: (B, N) int64.

    Returns:
        (B, Q, N) float32. Costs that are not finite become the largest finite number: such a pair
        is matched only if no other is left, and its loss then shows the failure.
    """
    count = mask_samples.shape[-1]
    transposed = target_samples.transpose(1, 2)
    # -t log s(x) - (1-t) log(1-s(x)) = softplus(x) - x t: one product instead of two, and
    # softplus(x) = max(x, 0) - log s(|x|), several times faster on a CPU than torch's softplus
    softplus = mask_samples.relu() - mask_samples.abs().sigmoid_().log_()
    bce = (softplus.sum(-1, keepdim=True) - mask_samples @ transposed) / count
    probs = mask_samples.sigmoid()
    sums = probs.sum(-1, keepdim=True) + target_samples.sum(-1).unsqueeze(1)
    dice = 1.0 - (2.0 * (probs @ transposed) + 1.0) / (sums + 1.0)
    index = labels.unsqueeze(1).expand(-1, class_probs.shape[1], -1)
    cost = options.bce_weight * bce + options.dice_weight * dice
    cost = cost - options.class_weight * class_probs.gather(2, index)
    largest = torch.finfo(cost.dtype).max
    return torch.nan_to_num(cost, nan=largest, posinf=largest, neginf=largest)


@dataclass(frozen=True)
class Matches:
    """All matched pairs, ordered by layer, image, query. Each field is (M,) int64 on one device."""

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.layer)


def assign(costs: Tensor, counts: Sequence[int]) -> Matches:
    """Cheapest one-to-one assignment per layer and image: min(Q, counts[b]) pairs each.

    Args:
        costs: (L, B, Q, N); columns beyond ``counts[b]`` are ignored. Copied to the CPU once.
        counts: targets per image; may be 0.
    """
    table = costs.detach().cpu().numpy()
    rows: list[np.ndarray] = []
    for layer in range(table.shape[0]):
        for image, count in enumerate(counts):
            query, target = linear_sum_assignment(table[layer, image, :, :count])
            where = np.full((2, len(query)), ((layer,), (image,)), dtype=np.int64)
            rows.append(np.concatenate([where, query[None], target[None]]))
    pairs = send(torch.from_numpy(np.concatenate(rows, axis=1).astype(np.int64)), costs.device)
    return Matches(layer=pairs[0], image=pairs[1], query=pairs[2], target=pairs[3])
