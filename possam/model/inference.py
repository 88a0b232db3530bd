"""From raw predictions and a vocabulary to panoptic, instance and semantic results.

Merging follows Mask2Former; classification follows the paper, section 3.5.

Shapes: B images, Q queries, K classes, M instances, H W of the output, h w of mask maps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.ensemble import Confidence, geometric_ensemble, mase
from possam.model.ops.fast_linear import fast_linear
from possam.model.possam import PosSAM
from possam.model.segmenter import RawPrediction
from possam.runtime.errors import InputError

EnsembleName = Literal["mase", "geometric", "ldp", "clip"]
STRIP_CELLS = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Numbers of masks and of classes that are at full resolution at a time: on a CPU they lie in the
cache.
"""


@dataclass(frozen=True)
class MaskScores:
    """How each mask is classified.

    Attributes:
        class_probs: (B, Q, K) float32, summing to 1 over the classes.
        void: (B, Q), probability that the mask is no object, from the LDP branch.
        iou: (B, Q) 0..1, weight of the mask (ones without IoU weighting).
    """

    class_probs: Tensor
    void: Tensor
    iou: Tensor

    @property
    def objectness(self) -> Tensor:
        """(B, Q): 1 - void."""
        return 1 - self.void

    @property
    def mask_weight(self) -> Tensor:
        """(B, Q): objectness times IoU, the factor common to all classes of a mask."""
        return self.objectness * self.iou

    @property
    def class_scores(self) -> Tensor:
        """(B, Q, K): the final score of each class of each mask."""
        return self.class_probs * self.mask_weight.unsqueeze(-1)

    @property
    def labels(self) -> Tensor:
        """(B, Q) int64: the most probable class."""
        return self.class_probs.argmax(-1)

    @property
    def scores(self) -> Tensor:
        """(B, Q): the final score of the most probable class, by which masks compete."""
        return self.class_probs.amax(-1) * self.mask_weight


@dataclass(frozen=True)
class Geometry:
    """Where mask maps lie: they cover ``padded``; ``content`` is cut out and becomes ``output``.

    All are (height, width); ``output`` is the size of the original image.
    """

    padded: tuple[int, int]
    content: tuple[int, int]
    output: tuple[int, int]

    def restore(self, mask_logits: Tensor) -> Tensor:
        """(Q, h, w) logits -> (Q, H, W) logits at the original image's size."""
        return self.restore_rows(mask_logits, slice(0, self.output[0]))

    def restore_rows(self, mask_logits: Tensor, rows: slice) -> Tensor:
        """The ``rows`` (start and stop) of :meth:`restore`: the same numbers, no others made."""
        logits = mask_logits.float()
        if self.content == self.output:
            return _resize_rows(logits, rows, self.padded)[..., : self.output[1]]
        taps = _Taps.of(rows, self.content[0], self.output[0])
        first, last = taps.extent
        content = _resize_rows(logits, slice(first, last), self.padded)[..., : self.content[1]]
        return _interpolate(content, taps, self.output[1], first=first)


@dataclass(frozen=True)
class SegmentPrediction:
    """One segment of a panoptic result; ``id`` is its value in the map."""

    id: int
    category: int
    score: float
    is_thing: bool


class InstancePrediction(NamedTuple):
    """M instances of one image, best first.

    Attributes:
        masks: (N, H, W) bool, each once, however many instances it is; place: (M,) int64, the mask
            of each instance; labels: (M,) int64; scores: (M,) float32.
    """

    masks: Tensor
    place: Tensor
    labels: Tensor
    scores: Tensor


@dataclass(frozen=True)
class _Taps:
    """Which two rows each row of a bilinear resizing lies between (``align_corners=False``).

    Attributes:
        upper, lower: (R,) int64, rows of the source; share: (R,) float32, weight of the lower.
    """

    upper: Tensor
    lower: Tensor
    share: Tensor

    @staticmethod
    def of(rows: slice, source: int, wanted: int) -> "_Taps":
        """Those of ``rows`` among the ``wanted`` that ``source`` rows become."""
        places = (torch.arange(rows.start, rows.stop, dtype=torch.float64) + 0.5) * source / wanted
        places = (places - 0.5).clamp_(min=0)
        upper = places.long().clamp_(max=source - 1)
        return _Taps(upper, (upper + 1).clamp_(max=source - 1), (places - upper).float())

    @property
    def extent(self) -> tuple[int, int]:
        """First row of the source that is needed, and the one after the last."""
        return int(self.upper[0]), int(self.lower[-1]) + 1


def _resize_rows(maps: Tensor, rows: slice, size: tuple[int, int]) -> Tensor:
    """(Q, h, w) -> the ``rows`` of the maps resized to ``size``; never ``maps`` itself."""
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


@torch.no_grad()
def classify(
    raw: RawPrediction,
    text: TextEmbeddings,
    *,
    possam: PosSAM,
    clip_logit_scale: float,
    seen: Tensor,
    ensemble: EnsembleName,
    alpha: float,
    beta: float,
    mase_confidence: Confidence,
    iou_weighting: bool,
) -> MaskScores:
    """Classify masks by both branches and combine them.

    Args:
        raw: predictions; ``text``: the vocabulary with K classes.
        possam: for its temperature and void embedding.
        clip_logit_scale: CLIP's own.
        seen: (K,) bool, True for classes with a training synonym.
        ensemble: ``mase``, ``geometric``, or one branch alone (``ldp``, ``clip``).
        alpha, beta, mase_confidence: see :mod:`possam.model.ensemble`.
        iou_weighting: weigh masks by their expected IoU; a model without an IoU head, which expects
            none, has weights of one.

    Raises:
        InputError: ``seen`` has another length than the vocabulary, or ``ensemble`` is unknown.
    """
    if seen.shape != (text.num_classes,):
        raise InputError(
            f"seen: {tuple(seen.shape)} flags for {text.num_classes} classes; give one a class"
        )
    logits = possam.class_logits(raw.ldp_embeddings, text)
    void = logits.softmax(-1)[..., -1]
    p_ldp = logits[..., :-1].softmax(-1)
    p_clip = (clip_logit_scale * text.similarity(raw.clip_embeddings)).softmax(-1)
    if ensemble == "mase":
        probs = mase(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta, confidence=mase_confidence)
    elif ensemble == "geometric":
        probs = geometric_ensemble(p_ldp, p_clip, seen=seen, alpha=alpha, beta=beta)
    elif ensemble in ("ldp", "clip"):
        probs = p_ldp if ensemble == "ldp" else p_clip
    else:
        raise InputError(
            f"inference.ensemble: unknown {ensemble!r}; valid choices: mase, geometric, ldp, clip"
        )
    if raw.iou is None or not iou_weighting:
        return MaskScores(probs, void, torch.ones_like(void))
    return MaskScores(probs, void, raw.iou)


@torch.no_grad()
def panoptic_inference(
    mask_logits: Tensor,
    scores: MaskScores,
    *,
    image: int,
    geometry: Geometry,
    is_thing: Tensor,
    object_threshold: float,
    overlap_threshold: float,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, list[SegmentPrediction]]:
    """Merge masks into one panoptic map (Mask2Former's rules).

    Masks whose objectness exceeds ``object_threshold`` compete for each pixel by score times mask
    probability. A mask that keeps less than ``overlap_threshold`` of its own area (probability at
    least 0.5) is dropped, its pixels stay void. Segments of one stuff class become one.

    Mask2Former thresholds the best class's probability. With an open vocabulary that falls with
    the number of similar names, so the probability of being an object at all is compared instead.

    Args:
        mask_logits: (Q, h, w) of the image; ``image``: its index in ``scores``.
        is_thing: (K,) bool.
        probabilities: what :func:`full_probabilities` made of ``mask_logits``, if it was called.

    Returns:
        (H, W) int32 ids, 0 = void, and the segments, in the order of their ids, best mask first.
    """
    kept = (scores.objectness[image] > object_threshold).nonzero().flatten()
    ranking = scores.scores[image][kept].argsort(descending=True, stable=True)
    kept = kept[ranking]
    mask_scores, labels = scores.scores[image][kept], scores.labels[image][kept]
    device = mask_logits.device
    ids = torch.zeros(geometry.output, dtype=torch.int32, device=device)
    if not len(kept):
        return ids, []

    count = len(kept)
    winner = torch.empty(geometry.output, dtype=torch.int64, device=device)
    inside = torch.empty(geometry.output, dtype=torch.bool, device=device)
    area = torch.zeros(count, dtype=torch.int64, device=device)
    for rows, strip in _strips(mask_logits, geometry, kept, probabilities):
        hard = torch.ge(strip, 0.5, out=torch.empty_like(strip))
        area += _count(hard)
        index = _first_argmax(strip.mul_(mask_scores[:, None, None]))
        winner[rows] = index
        inside[rows] = hard.gather(0, index[None])[0] > 0

    won = torch.bincount(winner.flatten(), minlength=count)
    visible = torch.bincount(winner[inside], minlength=count)
    # In double precision: 255 of 425 pixels are 0.6, which float32 misses.
    accepted = (visible > 0) & (won.double() / area >= overlap_threshold)
    things = is_thing.to(device)[labels]
    segment_of = torch.zeros(count, dtype=torch.int32, device=device)
    segments: list[SegmentPrediction] = []
    stuff: dict[int, int] = {}
    for k in accepted.nonzero().flatten().tolist():
        category, thing = int(labels[k]), bool(things[k])
        number = stuff.get(category, 0)
        if not number:
            number = len(segments) + 1
            segments.append(SegmentPrediction(number, category, float(mask_scores[k]), thing))
            if not thing:
                stuff[category] = number
        segment_of[k] = number
    return torch.where(inside, segment_of[winner], ids), segments


@torch.no_grad()
def instance_inference(
    mask_logits: Tensor,
    scores: MaskScores,
    *,
    image: int,
    geometry: Geometry,
    is_thing: Tensor,
    top_k: int,
    probabilities: Tensor | None = None,
) -> InstancePrediction:
    """The ``top_k`` best (mask, class) pairs that are things (Mask2Former's rules).

    The pairs are taken among all classes, then stuff is dropped. Scores are multiplied by the mean
    mask probability inside the mask.

    Args:
        mask_logits: (Q, h, w) of the image; ``image``: its index in ``scores``.
        is_thing: (K,) bool.
        probabilities: what :func:`full_probabilities` made of ``mask_logits``, if it was called.
    """
    pairs = scores.class_scores[image]
    classes = pairs.shape[-1]
    values, index = pairs.flatten().topk(min(top_k, pairs.numel()))
    queries, labels = index // classes, index % classes
    keep = is_thing.to(labels.device)[labels]
    values, queries, labels = values[keep], queries[keep], labels[keep]
    needed, place = queries.unique(return_inverse=True)
    masks = torch.zeros((len(needed), *geometry.output), dtype=torch.bool, device=values.device)
    quality = torch.zeros(len(needed), device=values.device)
    area = torch.zeros(len(needed), dtype=torch.int64, device=values.device)
    for rows, strip in _strips(mask_logits, geometry, needed, probabilities):
        binary = torch.gt(strip, 0.5, out=torch.empty_like(strip))
        masks[:, rows] = binary > 0
        area += _count(binary)
        quality += strip.mul_(binary).sum((1, 2))
    final = values * (quality / area.clamp(min=1))[place]
    order = final.argsort(descending=True, stable=True)
    return InstancePrediction(masks, place[order], labels[order], final[order])


@torch.no_grad()
def semantic_inference(
    mask_logits: Tensor,
    scores: MaskScores,
    *,
    image: int,
    geometry: Geometry,
    probabilities: Tensor | None = None,
) -> Tensor:
    """The class of every pixel: the highest sum over masks of class score times mask probability.

    Args:
        mask_logits: (Q, h, w) of the image; ``image``: its index in ``scores``.
        probabilities: what :func:`full_probabilities` made of ``mask_logits``, if it was called.

    Returns:
        (H, W) int64 class indices.
    """
    weights = scores.class_scores[image].T.contiguous()
    label = torch.empty(geometry.output, dtype=torch.int64, device=weights.device)
    strips = _strips(mask_logits, geometry, None, probabilities, beside=len(weights))
    for rows, strip in strips:
        votes = fast_linear(strip.flatten(1).T, weights)
        label[rows] = votes.max(-1).indices.view(-1, geometry.output[1])
    return label


@torch.no_grad()
def full_probabilities(mask_logits: Tensor, geometry: Geometry) -> Tensor | None:
    """Probabilities (Q, H, W) of all masks (Q, h, w) of an image at its full size, if they fit.

    For several results of one image, which then share them; ``None`` where they are more than
    :data:`STRIP_CELLS` and each result has to make them strip by strip.
    """
    height, width = geometry.output
    if len(mask_logits) * height * width > STRIP_CELLS[mask_logits.device.type]:
        return None
    return geometry.restore(mask_logits).sigmoid_()


def _strips(
    mask_logits: Tensor,
    geometry: Geometry,
    chosen: Tensor | None,
    probabilities: Tensor | None,
    *,
    beside: int = 0,
) -> Iterator[tuple[slice, Tensor]]:
    """Probabilities (N, rows, W) at full size, a strip of rows at a time, with the rows.

    Args:
        chosen: (N,) indices of the masks, whose strips are the caller's to change; ``None``: all of
            them, to be left as they are.
        probabilities: (Q, H, W) of all masks, if they were made before.
        beside: numbers a pixel that the caller keeps beside them.
    """
    count = len(mask_logits) if chosen is None else len(chosen)
    if not count:
        return
    height, width = geometry.output
    step = max(1, STRIP_CELLS[mask_logits.device.type] // ((count + beside) * width))
    logits = mask_logits if chosen is None or probabilities is not None else mask_logits[chosen]
    for start in range(0, height, step):
        rows = slice(start, min(height, start + step))
        if probabilities is None:
            yield rows, geometry.restore_rows(logits, rows).sigmoid_()
        elif chosen is None:
            yield rows, probabilities[:, rows]
        else:
            yield rows, probabilities[chosen, rows]


def _count(ones: Tensor) -> Tensor:
    """Pixels (N,) int64 of masks (N, H, W) of floats 0 and 1."""
    # A row is exact in float32, a large image would not be.
    return ones.sum(2).sum(1, dtype=torch.float64).long()


def _first_argmax(maps: Tensor) -> Tensor:
    """``maps.argmax(0)`` (N, H, W) -> (H, W) int64, of equals the first.

    Of passes that a CPU makes eight numbers at a time, where ``argmax`` takes one after the other:
    a tenth of the time.
    """
    best = torch.eq(maps, maps.amax(0), out=torch.empty_like(maps))
    last = len(maps) - 1
    places = torch.arange(last, -1, -1, dtype=maps.dtype, device=maps.device)
    return last - best.mul_(places[:, None, None]).amax(0).long()
