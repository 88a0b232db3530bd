"""Class names as CLIP text embeddings: the vocabulary is an argument of the model, not a weight.

Shapes: K classes, N names (K classes with one or more synonyms each), E CLIP embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from possam.runtime.errors import InputError


class TextEncoder(Protocol):
    """What CLIP needs to have."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Unit-norm (len(texts), E)."""
        ...


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded vocabulary.

    Attributes:
        names: (N, E) float32, unit norm, one row per name, averaged over templates.
        class_index: (N,) int64, ascending: the class of each name, each of 0..K-1 at least once.
        num_classes: K.
    """

    names: Tensor
    class_index: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 1 or len(self.names) < 1:
            raise InputError("vocabulary: it is empty; give at least one class name")
        index = self.class_index
        if len(index) != len(self.names) or self.names.dim() != 2:
            raise InputError(
                f"vocabulary: {len(index)} class indices for names of shape "
                f"{tuple(self.names.shape)}; give (N, E) names and one index per name"
            )
        expected = torch.arange(self.num_classes, device=index.device)
        if not torch.equal(torch.unique_consecutive(index), expected):
            raise InputError(
                "vocabulary: class indices must ascend and give each of "
                f"0..{self.num_classes - 1} a name"
            )

    def to(self, device: torch.device) -> "TextEmbeddings":
        """The same on ``device``."""
        return TextEmbeddings(self.names.to(device), self.class_index.to(device), self.num_classes)

    def similarity(self, embeddings: Tensor) -> Tensor:
        """Cosine of unit-norm embeddings (..., E) with each class's best synonym, (..., K)."""
        scores = embeddings.float() @ self.names.T
        return best_synonym(scores, self.class_index, self.num_classes)


def best_synonym(scores: Tensor, class_index: Tensor, num_classes: int) -> Tensor:
    """The highest score among each class's names: (..., N) -> (..., K)."""
    if len(class_index) == num_classes:
        return scores
    index = class_index.expand(scores.shape)
    best = scores.new_full((*scores.shape[:-1], num_classes), float("-inf"))
    return best.scatter_reduce(-1, index, scores, reduce="amax")


@torch.no_grad()
def embed_vocabulary(
    clip: TextEncoder,
    vocabulary: Sequence[Sequence[str]],
    *,
    templates: Sequence[str],
    batch_size: int = 1024,
    report: Callable[[int], object] | None = None,
) -> TextEmbeddings:
    """Embed every synonym of every class in every template, and average over the templates.

    Args:
        vocabulary: synonyms of each class, in the order of the classes.
        templates: sentences with one ``{}`` for the name.
        batch_size: sentences per call of the encoder.
        report: called after each batch with its number of sentences.

    Raises:
        InputError: an empty vocabulary, a class without a name, a template without ``{}``.
    """
    if not vocabulary:
        raise InputError("vocabulary: it is empty; give at least one class name")
    if not templates:
        raise InputError("templates: there is none; give at least one, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"templates: {template!r} must contain {{}} once, for the name")
    for index, synonyms in enumerate(vocabulary):
        if not synonyms or not all(name.strip() for name in synonyms):
            raise InputError(f"vocabulary: class {index} has no name or a blank one: {synonyms!r}")
    names = [name for synonyms in vocabulary for name in synonyms]
    sentences = [template.replace("{}", name) for name in names for template in templates]
    encoded = []
    for start in range(0, len(sentences), batch_size):
        part = sentences[start : start + batch_size]
        encoded.append(clip.encode_text(part).float())
        if report is not None:
            report(len(part))
    averaged = torch.cat(encoded).unflatten(0, (len(names), len(templates))).mean(1)
    return of_names(F.normalize(averaged, dim=-1), vocabulary)


def of_names(names: Tensor, vocabulary: Sequence[Sequence[str]]) -> TextEmbeddings:
    """The vocabulary whose names, class by class, have the embeddings ``names`` (N, E)."""
    class_index = [index for index, synonyms in enumerate(vocabulary) for _ in synonyms]
    return TextEmbeddings(names, torch.tensor(class_index, device=names.device), len(vocabulary))
