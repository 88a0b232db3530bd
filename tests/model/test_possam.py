"""The assembled trainable part: shapes, gradients, symmetries, weights and their names."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.baselines.two_way import TwoWayDecoder
from possam.model.possam import PosSAM, rebuild_possam
from possam.runtime.errors import InputError
from tests.support.model_fakes import SMALL, STAGES, TWO_WAY, random_text, small_possam

VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "image_interaction": {"pooling_interaction": "image"},
    "cross_attention": {"pooling": "cross_attention"},
    "region": {"pooling": "region"},
    "clip": {"pooling": "clip"},
    "neck": {"region_features": "neck"},
    "queries": {"region_features": "queries"},
    "no_iou": {"iou_head": False},
    "no_fpn": {"pyramid": "resample"},
    "bare": {"pyramid": "resample", "pooling": "clip", "iou_head": False},
    "no_pixel_encoder": {"pixel_encoder_layers": 0},
    "two_way_1": {**TWO_WAY, "decoder_layers": 1},
    "two_way_9": {**TWO_WAY, "decoder_layers": 9},
    "two_way_projected": {**TWO_WAY, "hidden_dim": 48, "region_features": "neck"},
    "fcclip": STAGES,
    "resized_masks": {"mask_pooling": "resized_logits"},
    "both_features": {"region_features": "mask_features_and_queries"},
    "clip_backbone_ldp": {**STAGES, "pooling": "ldp", "iou_head": True},
}


Features = tuple[tuple[Tensor, ...], Tensor]


def features(variant: str = "full", size: tuple[int, int] = (4, 6), *, batch: int = 2) -> Features:
    """Random maps for masks of 4 x ``size``: SAM's one, or CLIP's of strides like 4, 8, 8, 8."""
    generator = torch.Generator().manual_seed(1)
    height, width = size

    def draw(channels: int, height: int, width: int) -> Tensor:
        return torch.randn(batch, channels, height, width, generator=generator)

    if VARIANTS[variant].get("backbone") == "clip":
        finest, *others = STAGES["backbone_channels"]
        stages = [draw(finest, 4 * height, 4 * width)]
        stages += [draw(channels, 2 * height, 2 * width) for channels in others]
        return tuple(stages), stages[-1]
    sam = draw(SMALL["backbone_channels"][0], height, width)
    return (sam,), draw(SMALL["clip_channels"], -(-height // 2), -(-width // 2))


def rows(found: Features, index: Tensor | slice) -> Features:
    """The same features of some of the images."""
    return tuple(level[index] for level in found[0]), found[1][index]


def query_parameters(model: PosSAM) -> list[nn.Parameter]:
    """Everything that belongs to one query."""
    if isinstance(model.decoder, TwoWayDecoder):
        return [model.decoder.queries]
    decoder = model.decoder.mask_decoder
    return [decoder.query_features, decoder.query_positions]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_shapes(variant: str, size: tuple[int, int]) -> None:
    model = small_possam(**VARIANTS[variant])
    layers = model(*features(variant, size), all_layers=True).layers
    assert len(layers) == VARIANTS[variant].get("decoder_layers", SMALL["decoder_layers"]) + 1
    for layer in layers:
        assert layer.mask_logits.shape == (2, 7, 4 * size[0], 4 * size[1])
        assert layer.embeddings.shape == (2, 7, SMALL["embed_dim"])
        assert_close(layer.embeddings.norm(dim=-1), torch.ones(2, 7))
        if VARIANTS[variant].get("iou_head", True):
            assert layer.iou_logits.shape == (2, 7)
        else:
            assert layer.iou_logits is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_last_layer_alone_is_the_last_of_all(variant: str) -> None:
    model = small_possam(**VARIANTS[variant])
    found = features(variant)
    every, last = model(*found, all_layers=True), model(*found)
    assert len(last.layers) == 1
    assert_close(last.layers[0].mask_logits, every.layers[-1].mask_logits)
    assert_close(last.layers[0].embeddings, every.layers[-1].embeddings)
    assert_close(last.clip_pooled, every.clip_pooled)


def test_clip_pooled_is_the_mean_of_clip_inside_the_masks() -> None:
    output = small_possam()(*features())
    clip = features()[1]
    logits = output.layers[-1].mask_logits
    for image in range(2):
        for query in range(7):
            inside = (logits[image, query] > 0).float()
            share = inside.unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2))
            mean = (clip[image] * share).sum((1, 2)) / share.sum().clamp(min=1e-6)
            assert_close(output.clip_pooled[image, query], mean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = small_possam(**VARIANTS[variant])
    torch.manual_seed(0)
    with torch.no_grad():  # deformable attention starts with weights of zero, which let none pass
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    output = model(*features(variant), all_layers=True)
    layers = output.layers
    loss = (
        model.class_logits(
            torch.stack([layer.embeddings for layer in layers]), random_text(classes=5)
        )
        .logsumexp(-1)[..., ::2]
        .sum()
    )
    loss = loss + (output.mask_logits * torch.randn_like(output.mask_logits)).sum()
    for layer in layers:
        if layer.iou_logits is not None:
            loss = loss + layer.iou_logits.sigmoid().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        # A key's bias shifts all logits of a softmax alike: its gradient is zero by nature.
        assert parameter.grad.any() or name.endswith("k_proj.bias"), name


def test_bfloat16_autocast_is_close_and_keeps_the_sensitive_parts_in_float32() -> None:
    model, text = small_possam(), random_text(classes=5)
    (sam,), clip = features()
    exact = model((sam,), clip)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model((sam.bfloat16(),), clip.bfloat16())
        logits = model.class_logits(mixed.layers[0].embeddings, text)
    assert mixed.layers[0].embeddings.dtype == logits.dtype == torch.float32
    assert_close(mixed.layers[0].embeddings.norm(dim=-1), torch.ones(2, 7))
    difference = (mixed.layers[0].mask_logits.float() - exact.layers[0].mask_logits).abs().mean()
    assert difference < 0.1 * exact.layers[0].mask_logits.abs().mean()
    model((sam.bfloat16(),), clip.bfloat16())  # features from a cache, without autocast


@pytest.mark.parametrize("variant", VARIANTS)
def test_images_of_a_batch_are_independent(variant: str) -> None:
    model = small_possam(**VARIANTS[variant])
    found = features(variant, batch=3)
    together = model(*found)
    for image in range(3):
        alone = model(*rows(found, slice(image, image + 1)))
        for one, many in zip(alone.layers, together.layers, strict=True):
            assert_close(one.mask_logits[0], many.mask_logits[image], rtol=1e-4, atol=1e-4)
            assert_close(one.embeddings[0], many.embeddings[image], rtol=1e-4, atol=1e-4)
            if one.iou_logits is not None:
                assert_close(one.iou_logits[0], many.iou_logits[image], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_queries_permutes_predictions(variant: str) -> None:
    model = small_possam(**VARIANTS[variant])
    found = features(variant)
    before = model(*found)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    with torch.no_grad():
        for parameter in query_parameters(model):
            parameter.copy_(parameter[order].clone())
    after = model(*found)
    assert_close(
        after.layers[0].mask_logits, before.layers[0].mask_logits[:, order], rtol=1e-4, atol=1e-4
    )
    assert_close(
        after.layers[0].embeddings, before.layers[0].embeddings[:, order], rtol=1e-4, atol=1e-4
    )
    assert_close(after.clip_pooled, before.clip_pooled[:, order], rtol=1e-4, atol=1e-4)


def test_class_logits_by_hand() -> None:
    model, text = small_possam(initial_temperature=0.1), random_text(classes=4, synonyms=3)
    embeddings = F.normalize(torch.randn(3, 2, SMALL["embed_dim"]), dim=-1)
    logits = model.class_logits(embeddings, text)
    assert logits.shape == (3, 2, 5)
    for k in range(4):
        cosines = embeddings @ text.names[text.class_index == k].T
        assert_close(logits[..., k], 10 * cosines.amax(-1))
    void = embeddings @ F.normalize(model.void_embed[0], dim=0)
    assert_close(logits[..., 4], 10 * void)
    with torch.no_grad():
        model.log_logit_scale.fill_(99.0)
    assert model.class_logits(embeddings, text).abs().max() <= 100.0


def test_vocabulary_of_another_clip_is_refused() -> None:
    with pytest.raises(InputError, match="text embeddings have 9 channels"):
        small_possam().class_logits(
            torch.ones(1, SMALL["embed_dim"]), random_text(classes=2, channels=9)
        )


def test_initial_weights_depend_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    first = small_possam(seed=5).state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(7)
    second, third = small_possam(seed=5).state_dict(), small_possam(seed=6).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


LINEAR = ("weight", "bias")


def expected_keys() -> set[str]:
    keys = {"void_embed", "log_logit_scale", "pixel_decoder.level_embed"}
    keys |= {f"mask_decoder.{n}" for n in ("query_features", "query_positions", "level_embed")}
    modules = [f"pyramid.{n}" for n in ("up4.0", "up4.1", "up4.3", "up2", "down2")]
    modules += [f"pyramid.out.{i}.{j}" for i in range(4) for j in (1, 3)]
    keys |= {f"pyramid.out.{i}.{j}.weight" for i in range(4) for j in (0, 2)}
    modules += [f"pixel_decoder.input_projections.{i}.{j}" for i in range(3) for j in (0, 1)]
    modules += [f"pixel_decoder.{n}" for n in ("lateral.1", "output.1", "mask_projection")]
    keys |= {"pixel_decoder.lateral.0.weight", "pixel_decoder.output.0.weight"}
    for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj"):
        modules.append(f"pixel_decoder.layers.0.attention.{name}")
    modules += [
        f"pixel_decoder.layers.0.{n}" for n in ("attention_norm", "ffn.fc1", "ffn.fc2", "ffn_norm")
    ]
    projections = [f"{n}_proj" for n in ("q", "k", "v", "out")]
    for i in range(SMALL["decoder_layers"]):
        for kind in ("cross", "self"):
            modules.append(f"mask_decoder.layers.{i}.{kind}_norm")
            modules += [f"mask_decoder.layers.{i}.{kind}_attention.{n}" for n in projections]
        modules += [f"mask_decoder.layers.{i}.{n}" for n in ("ffn.fc1", "ffn.fc2", "ffn_norm")]
    modules += ["mask_decoder.norm", *(f"mask_decoder.mask_head.{i}" for i in (0, 2, 4))]
    modules += [f"iou_head.{i}" for i in (0, 2, 4)]
    modules += [
        f"pooling.{stream}.{i}" for stream in ("region_stream", "clip_stream") for i in (0, 1, 3)
    ]
    modules += ["pooling.attention_norm", *(f"pooling.attention.{n}" for n in projections)]
    modules += [f"pooling.mixer.block.{i}" for i in (0, 1, 3)] + [
        "pooling.output.0",
        "pooling.output.1",
    ]
    keys.add("pooling.stream_embed")
    keys |= {f"{module}.{name}" for module in modules for name in LINEAR}
    regions = ("pyramid.", "pixel_decoder.", "mask_decoder.")
    return {f"decoder.{key}" if key.startswith(regions) else key for key in keys}


def test_names_of_weights_are_pinned() -> None:
    """Changing one breaks every checkpoint: towers and vocabulary must not appear either."""
    assert set(small_possam().state_dict()) == expected_keys()


def test_a_description_read_from_json_gives_the_same_model() -> None:
    """The header of weights knows lists, not tuples."""
    read = json.loads(json.dumps(SMALL))
    seed = read.pop("seed")
    first, second = rebuild_possam(read, seed=seed), small_possam()
    assert first.padding == second.padding == SMALL["padding"]
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
