"""Any words: what a word scores does not depend on the words beside it."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from possam.evaluation.words import Names, WordScores, classify_words, cut_names, embed_words
from possam.model.encoders.text import TextEmbeddings, embed_vocabulary, of_names
from possam.model.inference import MaskScores, classify
from possam.model.segmenter import RawPrediction, Segmenter
from tests.support.model_fakes import FakeClip, FakeSam, inference_options, small_possam

OPTIONS = inference_options()
BACKGROUND: list[Names] = [("grass", "lawn"), ("sky",), ("road",)]
FOREIGN = [(f"thing{number}",) for number in range(40)]
OWN: list[Names] = [("cat",), ("dog", "puppy"), ("sky",), ("tree", "lawn")]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(sam=FakeSam(), clip=FakeClip(), possam=small_possam(), precision="fp32").eval()


@pytest.fixture(scope="module")
def raw(segmenter: Segmenter) -> RawPrediction:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return segmenter(torch.rand(2, 3, 32, 48, generator=generator) * 255)


def classified(
    raw: RawPrediction,
    words: Sequence[Names],
    background: Sequence[Names],
    *,
    embed: Callable[[Sequence[Names]], TextEmbeddings],
    segmenter: Segmenter,
) -> WordScores:
    known = embed(background) if background else None
    embedded = embed_words(words, background, text=embed(words), background_text=known)
    return classify_words(raw, embedded, segmenter=segmenter, options=OPTIONS)


def scored(
    raw: RawPrediction,
    segmenter: Segmenter,
    words: Sequence[Names],
    background: Sequence[Names] = BACKGROUND,
) -> MaskScores:
    embed = partial(embed_vocabulary, segmenter.clip, templates=("a {}",))
    return classified(raw, words, background, embed=embed, segmenter=segmenter).masks


@given(st.lists(st.sampled_from(OWN + FOREIGN), min_size=2, max_size=8, unique=True))
@settings(max_examples=30)
def test_a_word_scores_as_if_it_were_the_only_one(
    raw: RawPrediction, segmenter: Segmenter, words: list[Names]
) -> None:
    together = scored(raw, segmenter, words)
    single = [scored(raw, segmenter, [word]) for word in words]
    # (words, B, Q): each word's own score, whether or not the background beats it.
    label = together.labels
    for place, other in enumerate(single):
        here = label == place
        torch.testing.assert_close(together.scores[here], other.scores[here])
        torch.testing.assert_close(together.void[here], other.void[here])
    assert (
        together.scores >= torch.stack([s.class_scores[..., 0] for s in single]).amax(0) - 1e-6
    )[label < len(words)].all()


def test_every_word_s_own_score_is_given_whether_it_wins_or_not(
    raw: RawPrediction, segmenter: Segmenter
) -> None:
    embed = partial(embed_vocabulary, segmenter.clip, templates=("a {}",))
    words = OWN + FOREIGN
    together = classified(raw, words, BACKGROUND, embed=embed, segmenter=segmenter)
    assert together.found.shape == (*raw.ldp_embeddings.shape[:2], len(words))
    for place in (0, 5, 20):
        single = classified(raw, [words[place]], BACKGROUND, embed=embed, segmenter=segmenter)
        torch.testing.assert_close(together.found[..., place], single.found[..., 0])
    won = together.masks.labels < len(words)
    own = together.found.gather(-1, together.masks.labels.clamp(max=len(words) - 1)[..., None])
    torch.testing.assert_close(own[..., 0][won], together.masks.scores[won])


class Fixed:
    """An embedding by name, for scores that can be computed by hand."""

    def __init__(self, **names: tuple[float, float]) -> None:
        self.names = {name: torch.tensor(value) for name, value in names.items()}

    def embed(self, vocabulary: Sequence[Names]) -> TextEmbeddings:
        rows = torch.stack([self.names[name] for names in vocabulary for name in names])
        return of_names(rows, vocabulary)


class OneMask:
    """Logits are ten times the cosine, and 2 for void; CLIP agrees with the trained branch."""

    class clip:
        logit_scale = 10.0

    class possam:
        @staticmethod
        def class_logits(embeddings: Tensor, text: TextEmbeddings) -> Tensor:
            logits = 10 * text.similarity(embeddings)
            return torch.cat([logits, torch.full_like(logits[..., :1], 2.0)], -1)


def one_mask() -> RawPrediction:
    mask = torch.tensor([[[1.0, 0.0]]])
    return RawPrediction(torch.zeros(1, 1, 2, 2), mask, mask, None, (2, 2), (2, 2))


def by_hand(words: list[Names], background: list[Names]) -> MaskScores:
    fixed = Fixed(
        cat=(0.6, 0.8), dog=(0.4, 0.9), far=(-1.0, 0.0), grass=(0.5, 0.8), lawn=(0.9, 0.4)
    )
    one: Segmenter = OneMask()  # type: ignore[assignment]
    return classified(one_mask(), words, background, embed=fixed.embed, segmenter=one).masks


def test_scores_by_hand() -> None:
    e = np.exp
    found = by_hand([("far",), ("cat",), ("dog",)], [("grass",)])
    assert found.labels.tolist() == [[1]]
    assert float(found.class_probs[0, 0, 1]) == pytest.approx(e(6) / (e(6) + e(5)), rel=1e-5)
    assert float(found.void[0, 0]) == pytest.approx(e(2) / (e(6) + e(5) + e(2)), rel=1e-5)
    assert found.class_probs[0, 0, [0, 2, 3]].tolist() == [0, 0, 0]


def test_a_stronger_class_of_the_background_takes_the_mask() -> None:
    found = by_hand([("cat",)], [("lawn",)])
    assert found.labels.tolist() == [[1]] and float(found.class_probs[0, 0, 0]) == 0
    e = np.exp
    assert float(found.void[0, 0]) == pytest.approx(e(2) / (e(9) + e(2)), rel=1e-5)


def test_a_class_of_the_background_is_no_rival_of_its_own_name() -> None:
    fixed = Fixed(cat=(0.6, 0.8), Lawn=(0.9, 0.4), grass=(0.5, 0.8), lawn=(0.9, 0.4))
    found = classified(
        one_mask(),
        [("cat",), ("Lawn", "grass")],
        [("lawn",)],
        embed=fixed.embed,
        segmenter=OneMask(),  # type: ignore[arg-type]
    ).masks
    assert found.labels.tolist() == [[1]] and float(found.class_probs[0, 0, 1]) == 1.0


def test_a_class_that_the_word_is_nearest_to_is_no_rival() -> None:
    """The background's a and b have a cosine of 0.6: a word nearer to a than that is another a."""
    fixed = Fixed(a=(1.0, 0.0), b=(0.6, 0.8), near=(0.8, -0.6), far=(0.5, -0.866))
    for word, expected in (("near", 0), ("far", 1)):
        found = classified(
            one_mask(),
            [(word,)],
            [("a",), ("b",)],
            embed=fixed.embed,
            segmenter=OneMask(),  # type: ignore[arg-type]
        ).masks
        assert found.labels.tolist() == [[expected]], word


def test_without_a_background_a_word_has_only_void_beside_it() -> None:
    e = np.exp
    found = by_hand([("cat",), ("dog",)], [])
    assert found.labels.tolist() == [[0]] and float(found.class_probs[0, 0, 0]) == 1.0
    assert float(found.void[0, 0]) == pytest.approx(e(2) / (e(6) + e(2)), rel=1e-5)


def test_the_benchmarks_protocol_is_another(raw: RawPrediction, segmenter: Segmenter) -> None:
    """There, each word that is added takes probability from void."""
    embed = partial(embed_vocabulary, segmenter.clip, templates=("a {}",))
    few, many = (
        classify(
            raw,
            embed(words),
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.zeros(len(words), dtype=torch.bool),
            options=OPTIONS,
        )
        for words in (OWN, OWN + FOREIGN)
    )
    assert (many.void < few.void).all()


class Letters:
    """One token per letter."""

    context_length = 12

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


def test_names_that_are_cut() -> None:
    vocabulary = [("elephant", "cat"), ("elephants",)]
    assert cut_names(vocabulary, ["{}", "a {} in it"], Letters()) == {"elephants": "s"}
    assert cut_names(vocabulary, ["{}"], Letters()) == {}
    assert cut_names(vocabulary, ["the {}"], Letters()) == {"elephant": "nt", "elephants": "nts"}
