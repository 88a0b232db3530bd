"""What the exported classifiers compute, before any export: the rules of the library."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from possam.evaluation.words import classify_words, embed_words
from possam.model.encoders.text import TextEmbeddings, of_names
from possam.model.inference import classify
from possam.model.segmenter import RawPrediction, Segmenter
from possam.pictures.onnx_export import _SharedClassifier, _WordClassifier, vocabulary_arrays
from possam.pictures.result import PictureClass
from tests.support.model_fakes import FakeClip, FakeSam, inference_options, small_possam

WORDS = [("bird", "wren"), ("dog",), ("cat", "kitty", "puss")]
BACKGROUND = [("dog", "hound"), ("sky",), ("tree", "oak"), ("car",)]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    clip: Any = FakeClip()
    sam: Any = FakeSam()
    return Segmenter(sam=sam, clip=clip, possam=small_possam(), precision="fp32").eval()


@pytest.fixture(scope="module")
def raw(segmenter: Segmenter) -> RawPrediction:
    """Of a random image, with embeddings that differ between masks as those of a trained model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        raw = segmenter(255 * torch.rand(2, 3, 64, 96, generator=generator))
    ldp, clip = torch.randn(2, *raw.ldp_embeddings.shape, generator=generator)
    return replace(
        raw,
        ldp_embeddings=F.normalize(ldp, dim=-1),
        clip_embeddings=F.normalize(clip, dim=-1),
    )


def embedded(vocabulary: list[tuple[str, ...]], near: Tensor) -> TextEmbeddings:
    """Random names, the first of which is what the model saw in a mask."""
    count = sum(map(len, vocabulary))
    names = torch.randn(count, near.shape[-1], generator=torch.Generator().manual_seed(count))
    names[0] = near
    return of_names(F.normalize(names, dim=-1), vocabulary)


def tensors(arrays: dict[str, Any], *names: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[name]) for name in names]


@pytest.mark.parametrize("ensemble", ["mase", "geometric", "ldp", "clip"])
@pytest.mark.parametrize("mask_filter", ["best_class", "objectness"])
@torch.no_grad()
def test_both_rules_are_the_library_s(
    ensemble: str, mask_filter: str, segmenter: Segmenter, raw: RawPrediction
) -> None:
    options = inference_options(ensemble=ensemble, mask_filter=mask_filter)
    text = embedded(WORDS, raw.ldp_embeddings[0, 0])
    known = embedded(BACKGROUND, raw.ldp_embeddings[1, 2])
    own = embed_words(WORDS, BACKGROUND, text=text, background_text=known)
    classes = [PictureClass(names[0], names[1:], True) for names in WORDS]
    vocabulary: Any = SimpleNamespace(
        embedded=own, classes=classes, things=[True] * 3, seen=own.seen
    )
    arrays = vocabulary_arrays(vocabulary)
    assert raw.iou is not None
    masks = (raw.ldp_embeddings, raw.clip_embeddings, raw.iou)

    expected = classify_words(raw, own, segmenter=segmenter, options=options)
    inputs = tensors(arrays, "words", "seen", "background", "rivals")
    found = _WordClassifier(segmenter, options)(*masks, *inputs)
    check(found, expected.masks, expected.found, mask_filter)
    assert len(expected.masks.labels.unique()) > 1, "some masks are words, some are background"

    seen = torch.tensor(own.seen)
    shared = classify(
        raw,
        text,
        possam=segmenter.possam,
        clip_logit_scale=segmenter.clip.logit_scale,
        seen=seen,
        options=options,
    )
    found = _SharedClassifier(segmenter, options)(*masks, *inputs[:2])
    check(found, shared, shared.class_scores, mask_filter)


def check(found: Any, masks: Any, scores: Tensor, mask_filter: Any) -> None:
    label, score, presence, word_scores = found
    assert torch.equal(label, masks.labels)
    torch.testing.assert_close(score, masks.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(word_scores, scores, rtol=0, atol=1e-5)
    for threshold in (0.0, 0.2, 0.5, 0.8):
        assert torch.equal(presence > threshold, masks.kept(mask_filter, threshold))
