"""Class names as CLIP text embeddings: the vocabulary, an argument of the model and never a weight.

Shapes: K classes, N names (K classes with one or more synonyms each), E CLIP embedding.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from possam.runtime.errors import InputError
from possam.runtime.progress import Progress


class TextEncoder(Protocol):
    """What of CLIP is needed here."""

    def encode_text(self, texts: list[str]) -> Tensor:
        """Unit-norm (len(texts), E)."""
        ...


@dataclass(frozen=True)
class TextEmbeddings:
    """Embedded vocabulary.

    Attributes:
        names: (N, E) float32, unit norm, one row a name, averaged over templates.
        class_index: (N,) int64, ascending: the class of each name, each of 0..K-1 at least once.
        num_classes: K.
    """

    names: Tensor
    class_index: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        if self.num_classes < 1 or len(self.names) < 1:
            raise InputError("vocabulary: it is empty; give one class name at least")
        index = self.class_index
        if len(index) != len(self.names) or self.names.dim() != 2:
            raise InputError(
                f"vocabulary: {len(index)} class indices for names of shape "
                f"{tuple(self.names.shape)}; give (N, E) names and one index a name"
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
    label: str | None = None,
) -> TextEmbeddings:
    """Embed every synonym of every class in every template, and average over the templates.

    Args:
        vocabulary: synonyms of each class, in the order of the classes.
        templates: sentences with one ``{}`` for the name (decisions: ViLD's 14).
        batch_size: sentences in one call of the encoder.
        label: what the progress is called; ``None``: it is not shown.

    Raises:
        InputError: an empty vocabulary, a class without a name, a template without ``{}``.
    """
    if not vocabulary:
        raise InputError("vocabulary: it is empty; give one class name at least")
    if not templates:
        raise InputError("templates: there is none; give one at least, such as 'a photo of a {}'")
    for template in templates:
        if template.count("{}") != 1:
            raise InputError(f"templates: {template!r} must contain {{}} once, for the name")
    for index, synonyms in enumerate(vocabulary):
        if not synonyms or not all(name.strip() for name in synonyms):
            raise InputError(f"vocabulary: class {index} has no name or a blank one: {synonyms!r}")
    names = [name for synonyms in vocabulary for name in synonyms]
    sentences = [template.replace("{}", name) for name in names for template in templates]
    encoded = []
    with contextlib.ExitStack() as stack:
        progress = None
        if label is not None:
            progress = stack.enter_context(Progress(len(sentences), label=label, unit="sentences"))
        for start in range(0, len(sentences), batch_size):
            part = sentences[start : start + batch_size]
            encoded.append(clip.encode_text(part).float())
            if progress is not None:
                progress.update(len(part))
    averaged = torch.cat(encoded).unflatten(0, (len(names), len(templates))).mean(1)
    return of_names(F.normalize(averaged, dim=-1), vocabulary)


def of_names(names: Tensor, vocabulary: Sequence[Sequence[str]]) -> TextEmbeddings:
    """The embedded vocabulary whose names, class by class, have the embeddings ``names``."""
    class_index = [index for index, synonyms in enumerate(vocabulary) for _ in synonyms]
    return TextEmbeddings(names, torch.tensor(class_index, device=names.device), len(vocabulary))
