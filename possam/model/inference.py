"""From raw predictions and a vocabulary to panoptic, instance and semantic results.

Merging follows Mask2Former; classification follows the paper, section 3.5.

Shapes: B images, Q queries, K classes, M instances, H W of the output, h w of mask maps.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from possam.model.encoders.text import TextEmbeddings
from possam.model.ensemble import Ensemble
from possam.model.ops.fast_linear import fast_linear
from possam.model.ops.strips import Geometry, first_argmax, strips
from possam.model.options import InferenceOptions, MaskFilter
from possam.model.possam import PosSAM
from possam.model.registry import ENSEMBLES, load_part
from possam.model.segmenter import RawPrediction
from possam.runtime.errors import InputError


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

    def kept(self, mask_filter: MaskFilter, threshold: float) -> Tensor:
        """(B, Q) bool: which masks compete for pixels.

        ``best_class`` (Mask2Former, FC-CLIP): the probability of the best class, times 1 - void, is
        not below that of void, and exceeds ``threshold``. ``objectness``: 1 - void exceeds it. The
        expected IoU weighs masks against each other, and decides nothing here.
        """
        if mask_filter == "objectness":
            return self.objectness > threshold
        best = self.class_probs.amax(-1) * self.objectness
        return (best >= self.void) & (best > threshold)

    @property
    def labels(self) -> Tensor:
        """(B, Q) int64: the most probable class."""
        return self.class_probs.argmax(-1)

    @property
    def scores(self) -> Tensor:
        """(B, Q): the final score of the most probable class, by which masks compete."""
        return self.class_probs.amax(-1) * self.mask_weight


@dataclass(frozen=True)
class SegmentPrediction:
    """One segment of a panoptic result: ``id`` in the map, ``query``: its (best) mask."""

    id: int
    category: int
    score: float
    is_thing: bool
    query: int


class InstancePrediction(NamedTuple):
    """M instances of one image, best first.

    Attributes:
        masks: (N, H, W) bool; a mask that gives several instances is here once.
        place: (M,) int64, index of each instance's mask; labels: (M,) int64; scores: (M,) float32.
    """

    masks: Tensor
    place: Tensor
    labels: Tensor
    scores: Tensor


@torch.no_grad()
def classify(
    raw: RawPrediction,
    text: TextEmbeddings,
    *,
    possam: PosSAM,
    clip_logit_scale: float,
    seen: Tensor,
    options: InferenceOptions,
) -> MaskScores:
    """Classify masks by both branches and combine them.

    Args:
        possam: for its temperature and void embedding; ``clip_logit_scale``: CLIP's own.
        seen: (K,) bool, True for classes with a training synonym.
        options: the ensemble, its weights, and whether masks are weighted by their expected IoU;
            without an IoU head every mask has weight one.

    Raises:
        InputError: ``seen`` has another length than the vocabulary.
    """
    if seen.shape != (text.num_classes,):
        raise InputError(
            f"seen: {tuple(seen.shape)} flags for {text.num_classes} classes; give one per class"
        )
    ensemble: Ensemble = load_part(ENSEMBLES, options.ensemble)
    logits = possam.class_logits(raw.ldp_embeddings, text)
    void = logits.softmax(-1)[..., -1]
    p_ldp = logits[..., :-1].softmax(-1)
    p_clip = (clip_logit_scale * text.similarity(raw.clip_embeddings)).softmax(-1)
    probs = ensemble(p_ldp, p_clip, seen=seen, options=options)
    iou = raw.iou if options.iou_weighting else None
    return MaskScores(probs, void, torch.ones_like(void) if iou is None else iou)


@torch.no_grad()
def panoptic_inference(
    mask_logits: Tensor,
    scores: MaskScores,
    *,
    image: int,
    geometry: Geometry,
    is_thing: Tensor,
    mask_filter: MaskFilter,
    object_threshold: float,
    overlap_threshold: float,
    probabilities: Tensor | None = None,
) -> tuple[Tensor, list[SegmentPrediction]]:
    """Merge masks into one panoptic map (Mask2Former's rules, which are FC-CLIP's).

    The masks that :meth:`MaskScores.kept` names compete for each pixel by score times mask
    probability. A mask that keeps less than ``overlap_threshold`` of its own area (probability at
    least 0.5) is dropped, and its pixels stay void. Segments of one stuff class become one.

    Args:
        mask_logits: (Q, h, w) of the image; ``image``: its index in ``scores``.
        is_thing: (K,) bool.
        probabilities: the result of ``full_probabilities`` for ``mask_logits``, if there is one.

    Returns:
        (H, W) int32 ids, 0 = void, and the segments, in the order of their ids, best mask first.
    """
    kept = scores.kept(mask_filter, object_threshold)[image].nonzero().flatten()
    kept = kept[scores.scores[image][kept].argsort(descending=True, stable=True)]
    mask_scores, labels = scores.scores[image][kept], scores.labels[image][kept]
    device, count = mask_logits.device, len(kept)
    ids = torch.zeros(geometry.output, dtype=torch.int32, device=device)
    if not count:
        return ids, []
    winner = torch.empty(geometry.output, dtype=torch.int64, device=device)
    inside = torch.empty(geometry.output, dtype=torch.bool, device=device)
    area = torch.zeros(count, dtype=torch.int64, device=device)
    for rows, strip in strips(mask_logits, geometry, chosen=kept, probabilities=probabilities):
        hard = strip >= 0.5
        area += hard.sum((1, 2))
        winner[rows] = first_argmax(strip * mask_scores[:, None, None])
        inside[rows] = hard.gather(0, winner[None, rows])[0]
    won = torch.bincount(winner.flatten(), minlength=count)
    visible = torch.bincount(winner[inside], minlength=count)
    # In double precision: 255 of 425 pixels are 0.6, which float32 misses.
    accepted = (visible > 0) & (won.double() / area >= overlap_threshold)
    things, queries = is_thing.to(device)[labels], kept.tolist()
    segment_of = torch.zeros(count, dtype=torch.int32, device=device)
    segments: list[SegmentPrediction] = []
    newest: dict[int, int] = {}  # by category
    for k in accepted.nonzero().flatten().tolist():
        category, thing, score = int(labels[k]), bool(things[k]), float(mask_scores[k])
        if thing or category not in newest:
            newest[category] = len(segments) + 1
            segments.append(SegmentPrediction(newest[category], category, score, thing, queries[k]))
        segment_of[k] = newest[category]
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
    mask probability inside the mask. Arguments as of :func:`panoptic_inference`.
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
    for rows, strip in strips(mask_logits, geometry, chosen=needed, probabilities=probabilities):
        masks[:, rows] = strip > 0.5
        quality += (strip * masks[:, rows]).sum((1, 2))
    area = masks.sum((1, 2))
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

    Arguments as of :func:`panoptic_inference`. Returns (H, W) int64 class indices.
    """
    weights = scores.class_scores[image].T.contiguous()
    label = torch.empty(geometry.output, dtype=torch.int64, device=weights.device)
    parts = strips(mask_logits, geometry, probabilities=probabilities, beside=len(weights))
    for rows, strip in parts:
        votes = fast_linear(strip.flatten(1).T, weights)
        label[rows] = votes.max(-1).indices.view(-1, geometry.output[1])
    return label
