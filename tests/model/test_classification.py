"""Classification of masks by both branches: every formula of ``classify`` written out."""

import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import MaskScores, classify
from possam.model.possam import PosSAM
from possam.model.segmenter import RawPrediction
from possam.runtime.errors import InputError
from tests.support.model_fakes import SMALL, inference_options, random_text, small_possam
from tests.support.parity_report import Parity

CLIP_SCALE = 20.0
SEEN = torch.tensor([True, False, True, False])
FLOAT32 = 1e-5
"""Bound: cosines in float32, multiplied by temperatures of up to 20, against float64."""


@functools.cache
def model() -> PosSAM:
    """One model for all examples: only its temperature and void embedding are used."""
    return small_possam()


def raw_prediction(*, seed: int = 0, batch: int = 2, queries: int = 6) -> RawPrediction:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, queries, SMALL["embed_dim"])
    return RawPrediction(
        mask_logits=torch.randn(batch, queries, 4, 6, generator=generator) * 3,
        ldp_embeddings=F.normalize(torch.randn(shape, generator=generator), dim=-1),
        clip_embeddings=F.normalize(torch.randn(shape, generator=generator), dim=-1),
        iou=torch.rand(batch, queries, generator=generator),
        padded_size=(16, 24),
        image_size=(11, 21),
    )


def classified(raw: RawPrediction, **changes: Any) -> MaskScores:
    seen = changes.pop("seen", SEEN)
    return classify(
        raw,
        random_text(classes=4),
        possam=model(),
        clip_logit_scale=CLIP_SCALE,
        seen=seen,
        options=inference_options(**changes),
    )


def cosines(embedding: Tensor, text: TextEmbeddings) -> list[float]:
    """Cosine with the best synonym of each class, name by name, in float64."""
    values = (text.names.double() @ embedding.double()).tolist()
    owners = text.class_index.tolist()
    return [
        max(value for value, owner in zip(values, owners, strict=True) if owner == k)
        for k in range(text.num_classes)
    ]


def written_out(
    raw: RawPrediction, text: TextEmbeddings, *, ensemble: str
) -> tuple[Tensor, Tensor]:
    """Class probabilities (B, Q, K) and void (B, Q) in float64, mask by mask."""
    scale = float(model().log_logit_scale.detach().double().exp())
    void_name = F.normalize(model().void_embed.detach().double(), dim=-1)[0]
    images, queries = raw.ldp_embeddings.shape[:2]
    probabilities = torch.zeros(images, queries, text.num_classes, dtype=torch.float64)
    void = torch.zeros(images, queries, dtype=torch.float64)
    for b in range(images):
        for q in range(queries):
            ldp, clip = raw.ldp_embeddings[b, q], raw.clip_embeddings[b, q]
            logits = [*cosines(ldp, text), float(void_name @ ldp.double())]
            powers = torch.tensor(logits, dtype=torch.float64).mul(scale).exp()
            void[b, q] = powers[-1] / powers.sum()
            first = powers[:-1] / powers[:-1].sum()
            second = torch.tensor(cosines(clip, text), dtype=torch.float64).mul(CLIP_SCALE).exp()
            second = second / second.sum()
            weight = torch.where(SEEN, 0.4, 0.8).double()
            if ensemble == "mase":
                odds = weight / (1 - weight) * second / first
                weight = odds / (1 + odds)
            elif ensemble in ("ldp", "clip"):
                weight = torch.full_like(weight, float(ensemble == "clip"))
            product = first ** (1 - weight) * second**weight
            probabilities[b, q] = product / product.sum()
    return probabilities, void


def compare(parity: Parity, seed: int, ensemble: str) -> None:
    """``classify`` against the formulas: probabilities, void and scores, best synonyms included."""
    raw = raw_prediction(seed=seed)
    probabilities, void = written_out(raw, random_text(classes=4), ensemble=ensemble)
    out = classified(raw, ensemble=ensemble)
    parity.close(out.class_probs, probabilities, bound=FLOAT32)
    parity.close(out.void, void, bound=FLOAT32)
    assert raw.iou is not None
    objects = (1 - void) * raw.iou.double()
    parity.close(out.class_scores, probabilities * objects[..., None], bound=FLOAT32)
    parity.close(out.scores, probabilities.amax(-1) * objects, bound=FLOAT32)
    plain = classified(raw, ensemble=ensemble, iou_weighting=False)
    parity.close(plain.class_scores, probabilities * (1 - void)[..., None], bound=FLOAT32)


@pytest.mark.parity("geometric_ensemble")
@pytest.mark.parametrize("ensemble", ["geometric", "ldp", "clip"])
@settings(max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_classify_by_fixed_weights_is_fc_clip_s(parity: Parity, seed: int, ensemble: str) -> None:
    compare(parity, seed, ensemble)


@pytest.mark.parity("mase")
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_classify_by_mase_is_its_formula(parity: Parity, seed: int) -> None:
    compare(parity, seed, "mase")


@pytest.mark.parity("mase")
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    ensemble=st.sampled_from(["mase", "geometric", "ldp", "clip"]),
    confidence=st.sampled_from(["class", "mask"]),
)
def test_iou_scales_masks_and_never_reorders_classes(
    parity: Parity, seed: int, ensemble: str, confidence: str
) -> None:
    raw = raw_prediction(seed=seed)
    assert raw.iou is not None
    options = {"ensemble": ensemble, "mase_confidence": confidence}
    weighted = classified(raw, **options)
    plain = classified(raw, **options, iou_weighting=False)
    parity.equal(weighted.labels, plain.labels)
    parity.equal(weighted.class_probs, plain.class_probs)
    parity.close(weighted.class_scores, plain.class_scores * raw.iou[..., None], bound=1e-6)
    order = weighted.class_scores.argsort(dim=-1, descending=True, stable=True)
    parity.equal(order, plain.class_scores.argsort(dim=-1, descending=True, stable=True))
    without = RawPrediction(**{**raw.__dict__, "iou": None})
    parity.equal(classified(without, **options).scores, plain.scores)


@pytest.mark.parity("batching")
@pytest.mark.parametrize("ensemble", ["mase", "geometric", "ldp", "clip"])
def test_images_are_classified_independently(parity: Parity, ensemble: str) -> None:
    raw = raw_prediction(batch=5)
    together = classified(raw, ensemble=ensemble)
    for start in range(5):
        fields = {
            name: value[start : start + 1] if isinstance(value, Tensor) else value
            for name, value in raw.__dict__.items()
        }
        alone = classified(RawPrediction(**fields), ensemble=ensemble)
        parity.close(alone.class_scores[0], together.class_scores[start], bound=1e-5)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="seen"):
        classified(raw_prediction(), seen=torch.tensor([True]))
    with pytest.raises(ValidationError, match="'mean'; valid choices: mase, geometric, ldp, clip"):
        classified(raw_prediction(), ensemble="mean")
