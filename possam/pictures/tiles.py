"""Large pictures in overlapping tiles, and the segments of the tiles joined into one map.

Two segments of neighbouring tiles become one if they have the same class and are the same thing
where the tiles overlap; stuff of one class becomes one in any case. Shapes: H W of the picture.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

OVERLAP = 4
"""Neighbouring tiles share one part in so many of their side."""

_SAME = 0.5
"""Two segments are one if they share at least this part of the smaller one, of what lies in the
overlap of their tiles."""

Place = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Found:
    """A segment before its area is known; ``scores``: the next best classes and their scores."""

    category: int
    score: float
    is_thing: bool
    embedding: NDArray[np.float32] | None
    clip_embedding: NDArray[np.float32]
    scores: tuple[tuple[int, float], ...]


@dataclass(frozen=True, eq=False)
class Part:
    """The result of a picture or of a tile.

    Attributes:
        ids: (H, W) int32; n is segment n of ``found``, counted from 1; 0: none.
        best: (K,) the best score of each class of the vocabulary, kept or not.
    """

    ids: NDArray[np.int32]
    found: list[Found]
    best: NDArray[np.float32]


def tiles(size: tuple[int, int], side: int) -> list[Place]:
    """Squares of ``side`` pixels that cover ``size`` (H, W), evenly spread, row by row.

    Neighbours share at least a quarter of their side; a picture that is smaller gives one tile.
    """
    return [
        (slice(top, min(top + side, size[0])), slice(left, min(left + side, size[1])))
        for top, left in product(_starts(size[0], side), _starts(size[1], side))
    ]


def _starts(length: int, side: int) -> list[int]:
    if length <= side:
        return [0]
    steps = -(-(length - side) // (side - side // OVERLAP))
    return [k * (length - side) // steps for k in range(steps + 1)]


def join(size: tuple[int, int], places: Sequence[Place], parts: Iterable[Part]) -> Part:
    """The result of a picture of ``size`` (H, W) from those of its tiles, which come row by row.

    Where tiles overlap, each has the half that is nearer to it. A joined segment has score,
    embeddings and next best names of its part with the highest score.
    """
    ids = np.zeros(size, np.int32)
    known = np.zeros(size, np.bool_)
    found: list[Found] = []
    parent = [0]
    best: NDArray[np.float32] | None = None
    stuff: dict[int, int] = {}
    for place, part in zip(places, parts, strict=True):
        first = len(parent)
        parent += range(first, first + len(part.found))
        found += part.found
        own = np.where(part.ids > 0, part.ids + (first - 1), 0).astype(np.int32)
        for one, other in _same(ids[place], own, known[place], found):
            _unite(parent, one, other)
        for number, each in enumerate(part.found, start=first):
            if not each.is_thing:
                _unite(parent, stuff.setdefault(each.category, number), number)
        _paint(ids, known, place, own)
        best = part.best if best is None else np.maximum(best, part.best)
    if best is None:
        raise ValueError("join: there is no tile")
    return _numbered(ids, found, [_root(parent, k) for k in range(len(parent))], best)


def _same(
    before: NDArray[np.int32],
    own: NDArray[np.int32],
    known: NDArray[np.bool_],
    found: Sequence[Found],
) -> list[tuple[int, int]]:
    """Pairs of segments, of earlier tiles and of this one, that are one thing."""
    old, new = before[known].astype(np.int64), own[known].astype(np.int64)
    areas: dict[int, int] = {}
    for values in (old, new):
        keys, counts = np.unique(values, return_counts=True)
        areas |= dict(zip(keys.tolist(), counts.tolist(), strict=True))
    both = (old > 0) & (new > 0)
    width = len(found) + 1
    pairs, shared = np.unique(old[both] * width + new[both], return_counts=True)
    joined = []
    for pair, count in zip(pairs.tolist(), shared.tolist(), strict=True):
        one, other = divmod(pair, width)
        alike = found[one - 1].category == found[other - 1].category
        if alike and count >= _SAME * min(areas[one], areas[other]):
            joined.append((one, other))
    return joined


def _paint(
    ids: NDArray[np.int32], known: NDArray[np.bool_], place: Place, own: NDArray[np.int32]
) -> None:
    """Put a tile into the map, but not into the half of an overlap that is nearer to the others."""
    seen = known[place]
    above = int(seen.all(1).argmin()) if seen[0].all() else 0
    left = int(seen.all(0).argmin()) if seen[:, 0].all() else 0
    inner = np.zeros(own.shape, np.bool_)
    inner[above // 2 :, left // 2 :] = True
    inner |= ~seen
    ids[place][inner] = own[inner]
    known[place] = True


def _root(parent: list[int], number: int) -> int:
    while parent[number] != number:
        parent[number] = number = parent[parent[number]]
    return number


def _unite(parent: list[int], one: int, other: int) -> None:
    a, b = sorted((_root(parent, one), _root(parent, other)))
    parent[b] = a


def _numbered(
    ids: NDArray[np.int32],
    found: Sequence[Found],
    roots: Sequence[int],
    best: NDArray[np.float32],
) -> Part:
    """Segments that have a pixel, numbered from 1, the best first."""
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=len(roots))).tolist()
    present = {roots[k] for k in used if k}
    leader: dict[int, Found] = {}
    for number, each in enumerate(found, start=1):
        root = roots[number]
        if root in present and (root not in leader or each.score > leader[root].score):
            leader[root] = each
    order = sorted(leader, key=lambda root: -leader[root].score)
    place = {root: number for number, root in enumerate(order, start=1)}
    table = np.array([place.get(root, 0) for root in roots], np.int32)
    return Part(table[ids], [leader[root] for root in order], best)
