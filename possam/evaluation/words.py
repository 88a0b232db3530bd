"""Segment an image into any words: the score of a word does not depend on the words beside it.

Void is one class against K. In a softmax over the words and void, as in FC-CLIP and the benchmarks'
protocol, each word that is added takes probability from void and from the other words: with 500
foreign words many more masks are objects, of a tiny score. Here each word is classified by itself,
among the classes that the model was trained on (the background) and void.

Shapes: B images, Q queries, K words (each with its synonyms), N names, E CLIP embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from possam.datasets.class_names import seen_classes
from possam.model.encoders.text import TextEmbeddings, of_names
from possam.model.inference import MaskScores, classify
from possam.model.options import InferenceOptions
from possam.model.segmenter import RawPrediction, Segmenter

Names = tuple[str, ...]
"""One class: its name and synonyms."""


@dataclass(frozen=True, eq=False)
class EmbeddedWords:
    """A vocabulary of K words, embedded once for any number of images.

    Attributes:
        words, background: the names of each class.
        seen: K flags, whether the word shares a name with the background.
        own, known: for each word, and each class of the background, the embeddings of its names.
        rivals: for each word the classes of the background that it is classified among.
    """

    words: tuple[Names, ...]
    background: tuple[Names, ...]
    seen: tuple[bool, ...]
    own: tuple[Tensor, ...]
    known: tuple[Tensor, ...]
    rivals: tuple[tuple[int, ...], ...]


def embed_words(
    words: Sequence[Names],
    background: Sequence[Names],
    *,
    text: TextEmbeddings,
    background_text: TextEmbeddings | None,
) -> EmbeddedWords:
    """Find the classes of the background that compete with each word.

    A class of the background that shares a name with the word, or to which the word is nearer than
    any other class of the background, may be the same thing, and is left out.

    Args:
        background: names of the classes that the model was trained on; empty: only void.
        text, background_text: both embedded by the segmenter's CLIP, on the segmenter's device;
            ``None`` for an empty background.
    """
    own = text.names.split([*map(len, words)])
    known = () if background_text is None else background_text.names.split([*map(len, background)])
    spelled, limit = [_spelled(names) for names in background], _nearest(background_text, known)
    rivals = []
    for names, rows in zip(words, own, strict=True):
        mine, near = _spelled(names), []
        if background_text is not None:
            near = background_text.similarity(rows).amax(0).tolist()
        free = (k for k, other in enumerate(spelled) if near[k] <= limit[k] and not mine & other)
        rivals.append(tuple(free))
    return EmbeddedWords(
        words=tuple(words),
        background=tuple(background),
        seen=tuple(seen_classes(words, background)),
        own=tuple(own),
        known=tuple(known),
        rivals=tuple(rivals),
    )


class WordScores(NamedTuple):
    """Classified masks.

    Attributes:
        masks: ``class_probs`` (B, Q, K + 1), background last: not zero only where the mask belongs.
        found: (B, Q, K), each word's own score, whether or not it wins the mask.
    """

    masks: MaskScores
    found: Tensor


@torch.no_grad()
def classify_words(
    raw: RawPrediction,
    vocabulary: EmbeddedWords,
    *,
    segmenter: Segmenter,
    options: InferenceOptions,
) -> WordScores:
    """Classify each mask as its best word, or as background.

    Each of the K words is classified by itself among its rivals, as
    :func:`possam.model.inference.classify` does with void. The words that are more probable than
    each of their rivals compete for the mask by their scores; a mask without such a word is
    background. So a word that wins no mask changes nothing.
    """
    device, shape = raw.ldp_embeddings.device, raw.ldp_embeddings.shape[:2]
    words, background = vocabulary.words, vocabulary.background

    def score(rows: Sequence[Tensor], names: Sequence[Names], seen: Sequence[bool]) -> MaskScores:
        return classify(
            raw,
            of_names(torch.cat([*rows]), names),
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.tensor(list(seen), device=device),
            options=options,
        )

    best, share = torch.zeros(2, *shape, device=device)
    void = torch.ones(shape, device=device)
    if background:
        scores = score(vocabulary.known, background, [True] * len(background))
        share, void = scores.class_probs.amax(-1), scores.void
    label = torch.full(shape, len(words), device=device)
    every = []
    for index, rivals in enumerate(vocabulary.rivals):
        scores = score(
            [vocabulary.own[index], *(vocabulary.known[k] for k in rivals)],
            [words[index], *(background[k] for k in rivals)],
            [vocabulary.seen[index], *(True for _ in rivals)],
        )
        mine = scores.class_probs[..., 0]
        found = mine * scores.objectness
        every.append(found)
        wins = (found > best) & (scores.labels == 0)
        best, share, void = (
            torch.where(wins, new, old)
            for new, old in ((found, best), (mine, share), (scores.void, void))
        )
        label = label.masked_fill(wins, index)
    probs = torch.zeros(*shape, len(words) + 1, device=device)
    probs.scatter_(-1, label.unsqueeze(-1), share.unsqueeze(-1))
    masks = MaskScores(probs, void, scores.iou)
    return WordScores(masks, torch.stack(every, -1) * masks.iou.unsqueeze(-1))


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
