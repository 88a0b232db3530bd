"""A vocabulary that one model has embedded, and what there is to say about it.

Shapes: B images, Q queries, K classes.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from possam.evaluation.words import (
    EmbeddedWords,
    WordScores,
    classify_words,
    cut_names,
    embed_words,
)
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import classify
from possam.model.options import InferenceOptions
from possam.model.segmenter import RawPrediction, Segmenter
from possam.pictures.result import PictureClass
from possam.pictures.words import Names, once, repeated_names
from possam.runtime.errors import InputError

Embed = Callable[[Sequence[Names]], TextEmbeddings]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The classes to look for, embedded once for any number of pictures of one model.

    Attributes:
        classes: in the order given.
        seen: whether the model was trained on each class; ``None`` if it was trained on none.
        notes: what a user should know: names that are cut, names of several classes.
    """

    classes: tuple[PictureClass, ...]
    seen: tuple[bool, ...] | None
    notes: tuple[str, ...]
    text: TextEmbeddings
    embedded: EmbeddedWords

    @property
    def things(self) -> list[bool]:
        """Whether each class is a thing."""
        return [each.is_thing for each in self.classes]

    def score(
        self, raw: RawPrediction, segmenter: Segmenter, options: InferenceOptions
    ) -> WordScores:
        """Each mask's class, of K + 1: the last one is the background, which is not reported.

        A model that was trained on classes tells each word from them, so that words do not compete
        with the words beside them. One that was trained on none has nothing to tell them from: all
        words share one softmax, and each mask is one of them.
        """
        if self.seen is not None:
            return classify_words(raw, self.embedded, segmenter=segmenter, options=options)
        device = raw.ldp_embeddings.device
        scores = classify(
            raw,
            self.text,
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.zeros(len(self.classes), dtype=torch.bool, device=device),
            options=options,
        )
        return WordScores(scores, scores.class_scores)


def make_vocabulary(
    classes: Sequence[str | Sequence[str]],
    *,
    stuff: Collection[str],
    background: Sequence[Names],
    background_text: TextEmbeddings | None,
    segmenter: Segmenter,
    embed: Embed,
    templates: Sequence[str],
) -> Vocabulary:
    """Embed ``classes``, each a name or a list of synonyms; other arguments as of the model.

    Raises:
        InputError: no class, a blank name, or a name in ``stuff`` that no class has.
    """
    words = [once([each] if isinstance(each, str) else each) for each in classes]
    if not words or not all(words):
        raise InputError("vocabulary: a class has no name, or there is no class; name each class")
    listed = {name.casefold() for name in stuff}
    known = {name.casefold() for names in words for name in names}
    if unknown := sorted(listed - known):
        raise InputError(
            f"stuff: {some(unknown)}: not among the words; valid choices: {some(sorted(known), 50)}"
        )
    text = embed(words)
    embedded = embed_words(words, background, text=text, background_text=background_text)
    return Vocabulary(
        classes=tuple(
            PictureClass(names[0], names[1:], not any(n.casefold() in listed for n in names))
            for names in words
        ),
        seen=embedded.seen if background else None,
        notes=tuple(_notes(words, segmenter, templates)),
        text=text,
        embedded=embedded,
    )


def _notes(words: Sequence[Names], segmenter: Segmenter, templates: Sequence[str]) -> list[str]:
    notes = []
    if repeated := repeated_names(words):
        notes.append(f"{some(repeated)}: in several classes; the first of them gets its segments")
    tokenizer = segmenter.clip.tokenizer
    if cut := cut_names(words, templates, tokenizer):
        ends = some([f"{name!r} loses {end!r}" for name, end in cut.items()])
        notes.append(
            f"too long for CLIP, which reads {tokenizer.context_length} tokens, and cut: {ends}; "
            "names that begin alike are then one"
        )
    return notes


def some(items: Sequence[str], most: int = 5) -> str:
    """The first ``most`` of ``items``, and how many there are beside."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
