"""Masks at the size of the image, a strip of rows at a time.

The plain way makes all masks (Q, H, W) at once, by :meth:`Geometry.restore`. In strips each number
is used while it is still in a CPU's cache: a third of the time, and little memory.

Shapes: Q masks, N chosen masks, H W of the output, h w of mask maps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRIP_CELLS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""How many numbers of full size are computed at a time: on a CPU they fit into the cache."""

Size = tuple[int, int]
"""Height and width."""


class Geometry(NamedTuple):
    """Where mask maps lie: they cover ``padded``; ``content`` is cut out and becomes ``output``.

    ``output`` is the size of the original image.
    """

    padded: Size
    content: Size
    output: Size

    def restore(self, mask_logits: Tensor) -> Tensor:
        """(Q, h, w) logits -> (Q, H, W) float32 logits at the original image's size."""
        resize = partial(F.interpolate, mode="bilinear", align_corners=False)
        maps = resize(mask_logits.float()[None], size=self.padded)
        return resize(maps[..., : self.content[0], : self.content[1]], size=self.output)[0]


def strips(
    mask_logits: Tensor,
    geometry: Geometry,
    *,
    chosen: Tensor | None = None,
    probabilities: Tensor | None = None,
    beside: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield each strip's rows, and the masks' probabilities there, (N, rows, W) float32.

    Args:
        mask_logits: (Q, h, w).
        chosen: (N,) indices of masks; ``None``: all of them.
        probabilities: the result of :func:`full_probabilities` for ``mask_logits``, if any.
        beside: how many more numbers per pixel the caller keeps.
    """
    count = len(mask_logits) if chosen is None else len(chosen)
    if not count:
        return
    height, width = geometry.output
    step = max(1, STRIP_CELLS[mask_logits.device.type] // ((count + beside) * width))
    own = mask_logits if probabilities is None else probabilities
    if chosen is not None:
        own = own[chosen]
    for start in range(0, height, step):
        rows = slice(start, min(height, start + step))
        made = probabilities is not None
        yield rows, own[:, rows] if made else restore_rows(own, geometry, rows).sigmoid()


def full_probabilities(mask_logits: Tensor, geometry: Geometry) -> Tensor | None:
    """Probabilities (Q, H, W) of all masks (Q, h, w) of an image at its full size, if they fit.

    Several results of one image can share them. ``None`` if they are more than :data:`STRIP_CELLS`
    numbers: then each result computes them strip by strip.
    """
    height, width = geometry.output
    if len(mask_logits) * height * width > STRIP_CELLS[mask_logits.device.type]:
        return None
    return restore_rows(mask_logits, geometry, slice(0, height)).sigmoid()


def restore_rows(mask_logits: Tensor, geometry: Geometry, rows: slice) -> Tensor:
    """The ``rows`` (start and stop) of ``Geometry.restore``: (Q, h, w) -> (Q, rows, W) float32."""
    padded, content, output = geometry
    logits = mask_logits.float()
    if content == output:
        return _resize_rows(logits, rows, padded)[..., : output[1]]
    taps = _Taps.of(rows, content[0], output[0])
    first, last = taps.extent
    inside = _resize_rows(logits, slice(first, last), padded)[..., : content[1]]
    return _interpolate(inside, taps, output[1], first=first)


@dataclass(frozen=True)
class _Taps:
    """The two source rows around each row of a bilinear resizing (``align_corners=False``).

    Attributes:
        upper, lower: (R,) int64, rows of the source; share: (R,) float32, weight of the lower.
    """

    upper: Tensor
    lower: Tensor
    share: Tensor

    @staticmethod
    def of(rows: slice, source: int, target: int) -> "_Taps":
        """The taps of ``rows`` when ``source`` rows are resized to ``target`` rows."""
        places = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * source / target
        places = (places - 0.5).clamp_(min=0)
        upper = places.long().clamp_(max=source - 1)
        return _Taps(upper, (upper + 1).clamp_(max=source - 1), (places - upper).float())

    @property
    def extent(self) -> tuple[int, int]:
        """First row of the source that is needed, and the one after the last."""
        return int(self.upper[0]), int(self.lower[-1]) + 1


def _resize_rows(maps: Tensor, rows: slice, size: Size) -> Tensor:
    """(Q, h, w) -> the ``rows`` of the maps resized to ``size``."""
    taps = _Taps.of(rows, maps.shape[-2], size[0])
    first, last = taps.extent
    return _interpolate(maps[:, first:last], taps, size[1], first=first)


def _interpolate(maps: Tensor, taps: _Taps, width: int, *, first: int) -> Tensor:
    """Bilinear: along the rows' length first, of the few rows that the ``taps`` name.

    ``maps`` (Q, h, w) are the source's rows from ``first`` on.
    """
    if maps.shape[-1] != width:
        maps = F.interpolate(
            maps[None], size=(maps.shape[-2], width), mode="bilinear", align_corners=False
        )[0]
    device = maps.device
    upper, lower = ((rows - first).to(device) for rows in (taps.upper, taps.lower))
    return maps[:, upper].lerp_(maps[:, lower], taps.share.to(device)[:, None])


def first_argmax(maps: Tensor) -> Tensor:
    """``maps.argmax(0)`` (N, H, W) -> (H, W) int64, the first of equals.

    On a CPU each pass here takes eight numbers at a time, where ``argmax`` takes one: a tenth of
    the time.
    """
    last = len(maps) - 1
    places = torch.arange(last, -1, -1, dtype=maps.dtype, device=maps.device)
    best = (maps == maps.amax(0)).to(maps.dtype)
    return last - best.mul_(places[:, None, None]).amax(0).long()
