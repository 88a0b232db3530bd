"""FC-CLIP's row against its method written out number by number: head, pooling, ensemble, filter.

The reference is the released code's: Yu et al. 2023, and its ADE20K configuration.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from possam.model.baselines.fcclip import FcclipHead
from possam.model.inference import classify, panoptic_inference
from possam.model.ops.strips import Geometry
from possam.model.possam import PosSAM
from possam.model.segmenter import RawPrediction
from possam.params.project import Project
from tests.support import slow_inference as slow
from tests.support.model_fakes import (
    STAGES,
    inference_options,
    model_options,
    random_text,
    small_possam,
)
from tests.support.parity_report import Parity

FLOAT32 = 1e-5
seeds = st.integers(0, 2**31)

PUBLISHED_HEAD = 2 * 256 + 3 * (256 * 256 + 256) + 256 * 768 + 768
"""Parameters of the released head: a norm, a projection, and an MLP 256-256-256-768."""


def linear(x: np.ndarray, weights: dict[str, np.ndarray], name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def head_written_out(
    pooled: np.ndarray, query: np.ndarray, weights: dict[str, np.ndarray]
) -> np.ndarray:
    """One unit embedding: norm and projection of the pooled, plus the query, then the MLP."""
    normed = (pooled - pooled.mean()) / np.sqrt(pooled.var() + 1e-5)
    normed = normed * weights["projection.0.weight"] + weights["projection.0.bias"]
    x = linear(normed, weights, "projection.1") + query
    for name in ("mlp.0", "mlp.2"):
        x = np.maximum(linear(x, weights, name), 0.0)
    x = linear(x, weights, "mlp.4")
    return x / np.linalg.norm(x)


def pooled_written_out(features: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """(C,): the mean of the cells (C, h, w) whose resized logit is positive; 0 if there is none."""
    inside = slow.resize(logits[None], features.shape[1:])[0] > 0
    return features[:, inside].mean(1) if inside.any() else np.zeros(len(features))


@pytest.mark.parity("fcclip_head")
@settings(max_examples=20)
@given(seed=seeds)
def test_the_head_is_the_released_one(parity: Parity, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = FcclipHead(model_options(), region_channels=24, clip_channels=10, embed_dim=14)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    weights = {name: value.double().numpy() for name, value in head.state_dict().items()}
    pooled, queries = torch.randn(2, 2, 5, 12, generator=generator)
    out = head(torch.cat((pooled, queries), -1), torch.zeros(2, 5, 10))
    for image in range(2):
        for mask in range(5):
            one, other = (t[image, mask].double().numpy() for t in (pooled, queries))
            parity.close(out[image, mask], head_written_out(one, other, weights), bound=FLOAT32)


def test_the_head_has_the_released_number_of_parameters() -> None:
    run = Project("paper").run("fcclip_coco").model
    width = 2 * run.hidden_dim
    head = FcclipHead(run, region_channels=width, clip_channels=1536, embed_dim=768)
    assert sum(p.numel() for p in head.parameters()) == PUBLISHED_HEAD == 395_264


def fcclip(seed: int) -> tuple[PosSAM, tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    model = small_possam(**STAGES, seed=seed % 1000)
    finest, *others = STAGES["backbone_channels"]
    maps = [torch.randn(1, finest, 16, 24, generator=generator)]
    maps += [torch.randn(1, channels, 8, 12, generator=generator) for channels in others]
    return model, tuple(maps)


@pytest.mark.parity("fcclip_pooling")
@settings(max_examples=10)
@given(seed=seeds)
def test_a_cell_is_pooled_if_its_resized_logit_is_positive(parity: Parity, seed: int) -> None:
    model, maps = fcclip(seed)
    output = model(maps, maps[-1])
    logits = output.layers[-1].mask_logits[0].detach().double().numpy()
    dense = maps[-1][0].double().numpy()
    for mask, own in enumerate(logits):
        if np.abs(slow.resize(own[None], (8, 12))).min() < 1e-5:
            continue  # rounding decides whether this cell is inside
        expected = pooled_written_out(dense, own)
        parity.close(output.clip_pooled[0, mask], expected, bound=FLOAT32)


@pytest.mark.parity("fcclip_head")
@settings(max_examples=10)
@given(seed=seeds)
def test_the_model_gives_its_head_pooled_mask_features_and_queries(
    parity: Parity, seed: int
) -> None:
    model, maps = fcclip(seed)
    features, queries, embeddings = model.decoder(list(maps), all_layers=False)
    out = model(maps, maps[-1]).layers[-1]
    weights = {name: v.double().numpy() for name, v in model.pooling.state_dict().items()}
    own = features[0].detach().double().numpy()
    logits = (embeddings[0, 0] @ features[0].flatten(1)).view(-1, *features.shape[-2:])
    for mask in range(queries.shape[2]):
        pooled = pooled_written_out(own, logits[mask].detach().double().numpy())
        query = queries[0, 0, mask].detach().double().numpy()
        expected = head_written_out(pooled, query, weights)
        parity.close(out.embeddings[0, mask], expected, bound=1e-4)


def released(
    raw: RawPrediction, model: PosSAM, seen: list[bool], *, classes: int, clip_scale: float
) -> np.ndarray:
    """(Q, K + 1): the ensemble times 1 - void beside void, each mask and class by itself."""
    text = random_text(classes=classes)
    names, owners = text.names.double().numpy(), text.class_index.tolist()
    void = F.normalize(model.void_embed.detach().double(), dim=-1)[0].numpy()
    scale = min(math.exp(float(model.log_logit_scale.detach())), 100.0)

    def cosines(embedding: np.ndarray) -> np.ndarray:
        values = names @ embedding
        return np.array(
            [max(v for v, k in zip(values, owners, strict=True) if k == c) for c in range(classes)]
        )

    def softmax(x: np.ndarray) -> np.ndarray:
        powers = np.exp(x - x.max())
        return np.asarray(powers / powers.sum())

    rows = []
    for own, clip in zip(raw.ldp_embeddings[0], raw.clip_embeddings[0], strict=True):
        trained, frozen = own.double().numpy(), clip.double().numpy()
        with_void = softmax(scale * np.append(cosines(trained), void @ trained))
        inside = softmax(scale * cosines(trained))
        outside = softmax(clip_scale * cosines(frozen))
        weight = np.where(seen, 0.4, 0.8)
        together = softmax(np.log(inside ** (1 - weight) * outside**weight))
        rows.append(np.append(together * (1 - with_void[-1]), with_void[-1]))
    return np.array(rows)


@pytest.mark.parity("fcclip_filter")
@pytest.mark.parametrize("threshold", [0.0, 0.3])
@settings(max_examples=20)
@given(seed=seeds)
def test_ensemble_and_filter_keep_the_released_masks(
    parity: Parity, threshold: float, seed: int
) -> None:
    """Class, score and fate of every mask; then the merged map of those that are kept."""
    classes, queries = 5, 12
    generator = torch.Generator().manual_seed(seed)
    model = small_possam(**STAGES, initial_temperature=0.2)

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(shape, generator=generator), dim=-1)

    raw = RawPrediction(
        mask_logits=torch.randn(1, queries, 4, 6, generator=generator) * 3,
        ldp_embeddings=unit(1, queries, 20),
        clip_embeddings=unit(1, queries, 20),
        iou=None,
        padded_size=(16, 24),
        image_size=(16, 24),
    )
    seen = [k % 2 == 0 for k in range(classes)]
    options: dict[str, Any] = {"mask_filter": "best_class", "object_threshold": threshold}
    scores = classify(
        raw,
        random_text(classes=classes),
        possam=model,
        clip_logit_scale=5.0,
        seen=torch.tensor(seen),
        options=inference_options(ensemble="geometric", **options),
    )
    expected = released(raw, model, seen, classes=classes, clip_scale=5.0)
    parity.close(scores.class_scores[0], expected[:, :-1], bound=FLOAT32)
    parity.close(scores.void[0], expected[:, -1], bound=FLOAT32)
    kept = (expected.argmax(1) < classes) & (expected.max(1) > threshold)
    parity.equal(scores.kept("best_class", threshold)[0].tolist(), kept.tolist())
    geometry = Geometry(padded=(16, 24), content=(16, 24), output=(16, 24))
    is_thing = torch.tensor([True, False, True, False, False])
    ids, segments = panoptic_inference(
        raw.mask_logits[0],
        scores,
        image=0,
        geometry=geometry,
        is_thing=is_thing,
        overlap_threshold=0.8,
        **options,
    )
    found = sorted(
        (s.category, sorted(map(tuple, (ids == s.id).nonzero().tolist()))) for s in segments
    )
    probabilities = geometry.restore(raw.mask_logits[0]).sigmoid()
    things = is_thing.tolist()
    merged = slow.panoptic(probabilities, scores, things, "best_class", threshold, 0.8)
    parity.equal(found, merged)


def test_the_released_configuration_is_that_of_every_scale() -> None:
    """OBJECT_MASK_THRESHOLD 0.0 and overlap 0.8, alpha 0.4 and beta 0.8, temperature 1 / 0.07."""
    for scale in ("paper", "lab", "mini", "smoke"):
        project = Project(scale)
        plain = project.variants["default"]
        assert (plain.mask_filter, plain.object_threshold) == ("best_class", 0.0)
        assert (plain.overlap_threshold, plain.alpha, plain.beta) == (0.8, 0.4, 0.8)
        assert project.run("fcclip_coco").model.initial_temperature == 0.07
