"""Areas, boxes and run-length codes of the segments of a label map (H, W), counted over runs."""

import itertools
from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt

from possam.datasets.pixels import Array, runs

Box = tuple[int, int, int, int]


def segment_table(ids: Array) -> list[tuple[int, int, Box]]:
    """(id, area in pixels, bounding box x y w h) of each non-zero id of ``ids``, ascending.

    ``ids``: integer (H, W), not negative.
    """
    if not ids.size:
        return []
    width = ids.shape[1]
    starts = np.union1d(runs(ids)[0], np.arange(0, ids.size, width))  # a run ends with its row
    lengths = np.diff(starts, append=ids.size)
    values, order, first = _groups(ids.ravel()[starts])
    starts, lengths = starts[order], lengths[order]
    rows, left = np.divmod(starts, width)
    last = np.append(first[1:], len(order)) - 1
    top, bottom = rows[first], rows[last] + 1  # within a group, runs keep their order
    x = np.minimum.reduceat(left, first)
    end = np.maximum.reduceat(left + lengths, first)
    boxes = np.stack([x, top, end - x, bottom - top], axis=1).tolist()
    areas = np.add.reduceat(lengths, first).tolist()
    table = zip(values.tolist(), areas, boxes, strict=True)
    return [(value, area, (b[0], b[1], b[2], b[3])) for value, area, b in table if value]


def encode_masks(ids: Array, wanted: Collection[int]) -> dict[int, dict[str, Any]]:
    """Compressed RLE of ``ids == value`` for all ``wanted`` values that occur, in one pass.

    ``ids``: integer (H, W), not negative. Returns COCO's RLE by value: ``size`` [H, W], ``counts``
    as text.
    """
    if not ids.size or not wanted:
        return {}
    turned = np.ascontiguousarray(compact(ids).T).ravel()  # COCO counts down the columns
    starts, lengths = runs(turned)
    values, order, first = _groups(turned[starts])
    edges = np.stack([starts, starts + lengths], axis=1)[order]
    counts = {}
    for value, own in zip(values.tolist(), np.split(edges, first[1:]), strict=True):
        if value in wanted:
            ends = own.ravel() if own[-1, 1] == turned.size else np.append(own, turned.size)
            counts[value] = np.diff(ends, prepend=0)
    size, texts = list(ids.shape), _counts_as_text([*counts.values()])
    return {v: {"size": size, "counts": text} for v, text in zip(counts, texts, strict=True)}


def compact(values: Array) -> Array:
    """The same numbers (0 or above) in the smallest unsigned dtype that holds them."""
    return values.astype(np.min_scalar_type(int(values.max())), copy=False)


def _groups(values: Array) -> tuple[Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct values, ascending; a stable order that sorts ``values``; where each group begins."""
    order = np.argsort(compact(values), kind="stable")  # a radix sort for small types
    ordered = values[order]
    first, _ = runs(ordered)
    return ordered[first], order, first


def _counts_as_text(counts: list[npt.NDArray[np.int64]]) -> list[str]:
    """COCO's text of run lengths (``rleToString`` of its API).

    From the fourth on, each number is coded as its difference from the number two before it. A
    character holds five bits, the lowest first; its sixth bit says that more characters follow.
    """
    if not counts:
        return []
    rest = np.concatenate([np.append(own[:3], own[3:] - own[1:-2]) for own in counts])
    characters, used = [], []
    more = np.ones(len(rest), dtype=bool)
    while more.any():
        used.append(more)
        bits, rest = rest & 31, rest >> 5
        more = more & (rest != np.where(bits & 16, -1, 0))
        characters.append(bits + 32 * more + 48)
    text, written = np.stack(characters, axis=1).astype(np.uint8), np.stack(used, axis=1)
    ends = np.cumsum([len(own) for own in counts])
    bounds = [0, *np.cumsum(written.sum(1))[ends - 1].tolist()]
    whole = text[written].tobytes().decode("ascii")
    return [whole[a:b] for a, b in itertools.pairwise(bounds)]
