"""Segment an image into any words: the score of a word does not depend on the words beside it.

Void is one class against K. In a softmax over the words and void, as in FC-CLIP and the benchmarks'
protocol, each word that is added takes probability from void and from the other words: with 500
foreign words many more masks are objects, of a tiny score. Here each word is classified by itself,
among the classes that the model was trained on (the background) and void.

Shapes: B images, Q queries, K words (each with its synonyms), N names, E CLIP embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from possam.datasets.class_names import seen_classes
from possam.evaluation.segment import segment_scored
from possam.model.encoders.text import TextEmbeddings, of_names
from possam.model.inference import MaskScores, SegmentPrediction, classify
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.model.segmenter import RawPrediction, Segmenter

Names = tuple[str, ...]
"""One class: its name and synonyms."""


def segment_words(
    pixels: NDArray[np.uint8],
    vocabulary: Sequence[Names],
    *,
    segmenter: Segmenter,
    embed: Callable[[Sequence[Names]], TextEmbeddings],
    things: Sequence[bool],
    training_vocabulary: Sequence[Names],
    inference: InferenceOptions,
    resolution: ResolutionOptions,
) -> tuple[NDArray[np.int32], list[SegmentPrediction]]:
    """The panoptic result of one image for any ``vocabulary`` of K classes.

    Each class is scored by itself (:func:`classify_words`). Other arguments and the result as of
    :func:`possam.evaluation.segment.segment_image`.

    Args:
        embed: turns names into text embeddings of the segmenter's CLIP.
        training_vocabulary: names of the classes trained on, the background; may be empty.
        resolution: instead of the test resolution of ``inference``.
    """

    def score(raw: RawPrediction) -> MaskScores:
        return classify_words(
            raw,
            vocabulary,
            training_vocabulary,
            embed=embed,
            segmenter=segmenter,
            options=inference,
        )

    ids, segments = segment_scored(
        pixels,
        segmenter=segmenter,
        score=score,
        things=[*things, True],
        inference=inference,
        resolution=resolution,
    )
    kept = [segment for segment in segments if segment.category < len(vocabulary)]
    table = np.zeros(len(segments) + 1, np.int32)
    for number, segment in enumerate(kept, start=1):
        table[segment.id] = number
    renumbered = [replace(segment, id=int(table[segment.id])) for segment in kept]
    return table[ids], renumbered


@torch.no_grad()
def classify_words(
    raw: RawPrediction,
    words: Sequence[Names],
    background: Sequence[Names],
    *,
    embed: Callable[[Sequence[Names]], TextEmbeddings],
    segmenter: Segmenter,
    options: InferenceOptions,
) -> MaskScores:
    """Classify each mask as its best word, or as background.

    Each of the K words is classified by itself among the classes of ``background``, as
    :func:`possam.model.inference.classify` does with void. The words that are more probable than
    each of these classes compete for the mask by their scores; a mask without such a word is
    background. So a word that wins no mask changes nothing.

    A class of the background that shares a name with the word, or to which the word is nearer than
    any other class of the background, may be the same thing, and is left out.

    Args:
        background: names of the classes that the model was trained on; empty: only void.
        embed: turns names into text embeddings of the segmenter's CLIP.

    Returns:
        ``class_probs`` (B, Q, K + 1), background last: not zero only where the mask belongs.
    """
    device, shape = raw.ldp_embeddings.device, raw.ldp_embeddings.shape[:2]

    def score(text: TextEmbeddings, seen: Sequence[bool]) -> MaskScores:
        return classify(
            raw,
            text,
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.tensor(list(seen), device=device),
            options=options,
        )

    own = embed(words).to(device).names.split([*map(len, words)])
    rest = embed(background).to(device) if background else None
    rows = () if rest is None else rest.names.split([*map(len, background)])
    known, limit = [_spelled(names) for names in background], _nearest(rest, rows)
    best, share = torch.zeros(2, *shape, device=device)
    void = torch.ones(shape, device=device)
    if rest is not None:
        scores = score(rest, [True] * len(background))
        share, void = scores.class_probs.amax(-1), scores.void
    label = torch.full(shape, len(words), device=device)
    for index, (names, seen) in enumerate(zip(words, seen_classes(words, background), strict=True)):
        near = () if rest is None else rest.similarity(own[index]).amax(0).tolist()
        rivals = [
            k
            for k, other in enumerate(known)
            if near[k] <= limit[k] and not _spelled(names) & other
        ]
        text = of_names(
            torch.cat([own[index], *(rows[k] for k in rivals)]),
            [names, *(background[k] for k in rivals)],
        )
        scores = score(text, [seen, *(True for _ in rivals)])
        mine = scores.class_probs[..., 0]
        found = mine * scores.objectness
        wins = (found > best) & (scores.labels == 0)
        best, share, void = (
            torch.where(wins, new, old)
            for new, old in ((found, best), (mine, share), (scores.void, void))
        )
        label = label.masked_fill(wins, index)
    probs = torch.zeros(*shape, len(words) + 1, device=device)
    probs.scatter_(-1, label.unsqueeze(-1), share.unsqueeze(-1))
    return MaskScores(probs, void, scores.iou)


class Tokenizer(Protocol):
    """What CLIP's tokenizer needs to have; ``context_length`` counts the start and the end."""

    context_length: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: Sequence[int]) -> str: ...


def cut_names(
    vocabulary: Sequence[Names], templates: Sequence[str], tokenizer: Tokenizer
) -> dict[str, str]:
    """Names that do not fit CLIP's context in some template, and what is lost of each."""
    room = tokenizer.context_length - 2
    starts = [template.partition("{}")[0] for template in templates]
    start = max(starts, key=lambda text: len(tokenizer.encode(text)))
    lost = {
        name: tokenizer.decode(tokenizer.encode(start + name)[room:]).strip()
        for names in vocabulary
        for name in names
    }
    return {name: end for name, end in lost.items() if end}


def _spelled(names: Names) -> set[str]:
    """Names as :func:`seen_classes` compares them."""
    return {name.strip().lower() for name in names}


def _nearest(classes: TextEmbeddings | None, rows: Sequence[torch.Tensor]) -> list[float]:
    """The cosine of each class with the class that is most like it; 1 if there is no other."""
    if classes is None or len(rows) == 1:
        return [1.0] * len(rows)
    cosines = torch.stack([classes.similarity(names).amax(0) for names in rows])
    return cosines.fill_diagonal_(-1.0).amax(0).tolist()
