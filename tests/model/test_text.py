"""The vocabulary: synonyms, templates, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.encoders.text import TextEmbeddings, best_synonym, embed_vocabulary
from possam.runtime.errors import InputError
from tests.support.model_fakes import FakeClip, random_text

TEMPLATES = ("a photo of a {}", "a {}")


def test_names_are_averaged_over_templates() -> None:
    clip = FakeClip()
    text = embed_vocabulary(clip, [("cat", "kitten"), ("sky",)], templates=TEMPLATES)
    assert text.num_classes == 2 and text.class_index.tolist() == [0, 0, 1]
    for row, name in enumerate(("cat", "kitten", "sky")):
        mean = clip.encode_text([f"a photo of a {name}", f"a {name}"]).mean(0)
        assert_close(text.names[row], F.normalize(mean, dim=0))


def test_batches_of_sentences_do_not_matter() -> None:
    vocabulary = [("cat", "kitten"), ("sky",), ("road", "street", "lane")]
    whole = embed_vocabulary(FakeClip(), vocabulary, templates=TEMPLATES)
    parts = embed_vocabulary(FakeClip(), vocabulary, templates=TEMPLATES, batch_size=5)
    assert torch.equal(whole.names, parts.names)


@pytest.mark.parametrize(
    ("vocabulary", "templates", "message"),
    [
        ([], TEMPLATES, "empty"),
        ([("cat",), ()], TEMPLATES, "class 1"),
        ([("cat", " ")], TEMPLATES, "class 0"),
        ([("cat",)], (), "templates"),
        ([("cat",)], ("a photo",), "a photo"),
    ],
)
def test_bad_vocabularies_are_refused(
    vocabulary: list[tuple[str, ...]], templates: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        embed_vocabulary(FakeClip(), vocabulary, templates=templates)


@pytest.mark.parametrize("index", [[0, 2, 2], [1, 1, 2], [0, 1, 0], [0, 1]])
def test_class_indices_are_checked(index: list[int]) -> None:
    with pytest.raises(InputError, match="vocabulary"):
        TextEmbeddings(torch.eye(3), torch.tensor(index), 3 if max(index) == 2 else 2)


def test_empty_embeddings_are_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        TextEmbeddings(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_best_synonym_is_the_highest_of_each_class(classes: int, synonyms: int, seed: int) -> None:
    text = random_text(classes=classes, synonyms=synonyms)
    scores = torch.randn(2, 3, len(text.names), generator=torch.Generator().manual_seed(seed))
    best = best_synonym(scores, text.class_index, classes)
    for k in range(classes):
        assert torch.equal(best[..., k], scores[..., text.class_index == k].amax(-1))


def test_repeating_a_synonym_changes_nothing() -> None:
    text = random_text(classes=3, synonyms=1)
    twice = TextEmbeddings(
        text.names.repeat_interleave(2, 0), text.class_index.repeat_interleave(2), 3
    )
    embeddings = F.normalize(torch.randn(4, text.names.shape[1]), dim=-1)
    assert_close(twice.similarity(embeddings), text.similarity(embeddings))
