"""The criterion written out: plain loops over pairs, points and pixels, in float64.

Tensors are only used for their gradients.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from possam.training.options import LossOptions
from possam.training.targets import Target

Pair = tuple[int, int, int, int]
"""Layer, image, query, target."""


def sample(pixels: Tensor, x: float, y: float) -> Tensor:
    """Bilinear sample of (h, w) at x, y in 0..1 of its extent; 0 outside."""
    height, width = pixels.shape
    column, row = x * width - 0.5, y * height - 0.5
    left, top = math.floor(column), math.floor(row)
    total = torch.zeros((), dtype=torch.float64)
    for j, horizontal in ((left, left + 1 - column), (left + 1, column - left)):
        for i, vertical in ((top, top + 1 - row), (top + 1, row - top)):
            if 0 <= i < height and 0 <= j < width:
                total = total + horizontal * vertical * pixels[i, j]
    return total


def samples(pixels: Tensor, points: Tensor) -> list[Tensor]:
    return [sample(pixels, x, y) for x, y in points.tolist()]


def cross_entropy(logits: list[Tensor], truth: list[Tensor]) -> Tensor:
    """Mean over points of -t log s(x) - (1 - t) log(1 - s(x))."""
    total = torch.zeros((), dtype=torch.float64)
    for x, t in zip(logits, truth, strict=True):
        inside = 1 / (1 + torch.exp(-x))
        total = total - t * torch.log(inside) - (1 - t) * torch.log(1 - inside)
    return total / len(logits)


def dice(logits: list[Tensor], truth: list[Tensor]) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1)."""
    overlap, size = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for x, t in zip(logits, truth, strict=True):
        inside = 1 / (1 + torch.exp(-x))
        overlap, size = overlap + inside * t, size + inside + t
    return 1 - (2 * overlap + 1) / (size + 1)


def probability(scores: Tensor, label: int) -> Tensor:
    """Softmax."""
    return torch.exp(scores[label]) / sum(torch.exp(score) for score in scores)


def costs(
    masks: Tensor, scores: Tensor, target: Target, points: Tensor, params: LossOptions
) -> list[list[float]]:
    """Cost of each query, with masks (Q, h, w) and scores (Q, K + 1), for each target."""
    table = []
    for mask, score in zip(masks.double(), scores.double(), strict=True):
        found = samples(mask, points)
        row = []
        for truth, label in zip(target.masks.double(), target.labels.tolist(), strict=True):
            goal = samples(truth, points)
            cost = params.bce_weight * cross_entropy(found, goal)
            cost = cost + params.dice_weight * dice(found, goal)
            cost = cost - params.class_weight * probability(score, label)
            row.append(cost.item())
        table.append(row)
    return table


def cheapest(table: Sequence[Sequence[float]], queries: int, targets: int) -> set[tuple[int, int]]:
    """(query, target) pairs of the cheapest one-to-one assignment, by trying all of them."""
    few, many = sorted((queries, targets))
    options = []
    for order in itertools.permutations(range(many), few):
        pairs = [(q, t) if queries > targets else (t, q) for t, q in enumerate(order)]
        options.append((sum(table[q][t] for q, t in pairs), pairs))
    return set(min(options)[1])


def match(case: dict[str, Any], points: Tensor, params: LossOptions) -> list[Pair]:
    """All matched pairs, ordered; ``points`` (B, P, 2) are those of each image in all layers."""
    pairs: list[Pair] = []
    for layer, masks in enumerate(case["mask_logits"]):
        for image, target in enumerate(case["targets"]):
            scores = case["class_logits"][layer][image]
            table = costs(masks[image], scores, target, points[image], params)
            found = cheapest(table, len(scores), len(target.labels))
            pairs += sorted((layer, image, query, which) for query, which in found)
    return pairs


def iou(logits: Tensor, mask: Tensor) -> float:
    """IoU of the positive logits and the cells that the mask covers at least by half."""
    height, width = logits.shape
    tall, wide = mask.shape[0] // height, mask.shape[1] // width
    overlap = union = 0
    for i in range(height):
        for j in range(width):
            cell = mask[i * tall : (i + 1) * tall, j * wide : (j + 1) * wide]
            truth, found = int(cell.sum()) * 2 >= cell.numel(), logits[i, j].item() > 0
            overlap, union = overlap + (truth and found), union + (truth or found)
    return overlap / union if union else 0.0


def terms(
    case: dict[str, Any], pairs: Sequence[Pair], points: Tensor, params: LossOptions
) -> dict[str, list[Tensor]]:
    """Unweighted terms of each layer, with gradients; ``points`` (M, P, 2) of each pair."""
    layers = len(case["mask_logits"])
    targets = max(1, sum(len(target.labels) for target in case["targets"]))
    values = {
        name: [torch.zeros((), dtype=torch.float64) for _ in range(layers)]
        for name in ("class", "bce", "dice", "iou")
    }
    for (layer, image, query, which), place in zip(pairs, points, strict=True):
        logits = case["mask_logits"][layer][image, query]
        mask = case["targets"][image].masks[which]
        found, goal = samples(logits, place), samples(mask.double(), place)
        values["bce"][layer] = values["bce"][layer] + cross_entropy(found, goal) / targets
        values["dice"][layer] = values["dice"][layer] + dice(found, goal) / targets
        expected = 1 / (1 + torch.exp(-case["iou_logits"][layer, image, query]))
        error = (expected - iou(logits, mask)) ** 2
        values["iou"][layer] = values["iou"][layer] + error / targets
    labels = {
        (layer, image, query): int(case["targets"][image].labels[which])
        for layer, image, query, which in pairs
    }
    for layer, scores in enumerate(case["class_logits"]):
        void = scores.shape[-1] - 1
        total, weights = torch.zeros((), dtype=torch.float64), 0.0
        for image, query in itertools.product(*map(range, scores.shape[:2])):
            label = labels.get((layer, image, query), void)
            weight = params.void_weight if label == void else 1.0
            total = total - weight * torch.log(probability(scores[image, query], label))
            weights += weight
        values["class"][layer] = total / weights
    return values


def weighted(values: dict[str, list[Tensor]], params: LossOptions) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, weight in (
        ("class", params.class_weight),
        ("bce", params.bce_weight),
        ("dice", params.dice_weight),
        ("iou", params.iou_weight),
    ):
        total = total + weight * sum(values[name])
    return total
