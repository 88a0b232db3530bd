"""Merging, instances and semantics written out pixel by pixel and mask by mask: slow and obvious.

The rules are Mask2Former's. Masks come at full size: (Q, H, W) probabilities.
"""

import numpy as np
from torch import Tensor

from possam.model.inference import MaskScores

Pixel = tuple[int, int]
Segments = list[tuple[int, list[Pixel]]]


def resize(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear, pixel centres at one half, edges repeated: (Q, h, w) -> (Q, H, W) in float64."""

    def taps(length: int, wanted: int) -> list[tuple[int, int, float]]:
        places = [max((i + 0.5) * length / wanted - 0.5, 0.0) for i in range(wanted)]
        return [(int(p), min(int(p) + 1, length - 1), p - int(p)) for p in places]

    result = np.zeros((len(maps), *size))
    for y, (top, bottom, down) in enumerate(taps(maps.shape[1], size[0])):
        for x, (left, right, across) in enumerate(taps(maps.shape[2], size[1])):
            upper = (1 - across) * maps[:, top, left] + across * maps[:, top, right]
            lower = (1 - across) * maps[:, bottom, left] + across * maps[:, bottom, right]
            result[:, y, x] = (1 - down) * upper + down * lower
    return result


def panoptic(
    probabilities: Tensor,
    scored: MaskScores,
    is_thing: list[bool],
    mask_filter: str,
    object_threshold: float,
    overlap_threshold: float,
) -> Segments:
    """(category, pixels) of each segment, sorted."""
    best, labels = scored.class_probs[0].max(-1)
    objectness = 1 - scored.void[0]
    weighted = (probabilities * (best * (objectness * scored.iou[0]))[:, None, None]).tolist()
    inside = (probabilities >= 0.5).tolist()
    compared = objectness if mask_filter == "objectness" else best * objectness
    rivals = [0.0] * len(best) if mask_filter == "objectness" else scored.void[0].tolist()
    queries = [
        q
        for q, (value, rival) in enumerate(zip(compared.tolist(), rivals, strict=True))
        if value > object_threshold and value >= rival
    ]
    height, width = probabilities.shape[1:]
    pixels = [(y, x) for y in range(height) for x in range(width)]
    owner = {}
    if queries:
        owner = {(y, x): max(queries, key=lambda q: weighted[q][y][x]) for y, x in pixels}
    things: Segments = []
    stuff: dict[int, list[Pixel]] = {}
    for q in queries:
        own = {(y, x) for y, x in pixels if inside[q][y][x]}
        won = {pixel for pixel, winner in owner.items() if winner == q}
        if not won & own or len(won) / len(own) < overlap_threshold:
            continue
        category = int(labels[q])
        if is_thing[category]:
            things.append((category, sorted(won & own)))
        else:
            stuff[category] = stuff.get(category, []) + list(won & own)
    return sorted(things + [(category, sorted(found)) for category, found in stuff.items()])


def instances(
    probabilities: Tensor, scored: MaskScores, is_thing: list[bool], top_k: int
) -> list[tuple[float, int, int]]:
    """(score, class, query) of the ``top_k`` best pairs that are things, best first."""
    found = []
    class_scores = scored.class_scores[0].tolist()
    pairs = [(value, q, k) for q, row in enumerate(class_scores) for k, value in enumerate(row)]
    for value, q, k in sorted(pairs, reverse=True)[:top_k]:
        if is_thing[k]:
            inside = [p for p in probabilities[q].flatten().tolist() if p > 0.5]
            found.append((value * sum(inside) / max(len(inside), 1), k, q))
    return sorted(found, key=lambda entry: -entry[0])


def semantic(probabilities: Tensor, scored: MaskScores) -> list[list[int]]:
    """The class of every pixel: the largest sum of the masks' votes; of equal ones the first."""
    weights, maps = scored.class_scores[0].tolist(), probabilities.tolist()
    height, width = probabilities.shape[1:]
    labels = []
    for y in range(height):
        row = []
        for x in range(width):
            totals = [
                sum(weight[k] * mask[y][x] for weight, mask in zip(weights, maps, strict=True))
                for k in range(len(weights[0]))
            ]
            row.append(totals.index(max(totals)))
        labels.append(row)
    return labels
