"""Initial weights follow the reference's distributions, where it states one."""

import math

import pytest
import torch
from torch import Tensor, nn

from possam.model.pixel_decoder import DeformableAttention
from possam.training.mask2former import rename_mask2former
from tests.support.mask2former_reference import PAPER, config_of, our_decoders, reference
from tests.support.parity_report import Parity


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def initialise(module: nn.Module) -> None:
    """What transformers states for a module of this class (not for those inside it)."""
    holder = type("Holder", (), {"config": config_of(PAPER)})()
    reference.Mask2FormerModel._init_weights(holder, module)


@pytest.mark.parity("deformable_attention")
def test_deformable_attention_starts_as_the_reference_does(parity: Parity) -> None:
    ours = DeformableAttention(channels=256, heads=8, levels=3, points=4)
    theirs = reference.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(256, 8, 3, 4)
    initialise(theirs)
    for name, value in theirs.state_dict().items():
        if name in ("value_proj.weight", "output_proj.weight"):
            same_distribution(ours.get_parameter(name), value)
        else:
            parity.close(ours.get_parameter(name), value, bound=1e-6)


def same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Two large samples: mean, spread and, where it is bounded, range agree."""
    assert ours.numel() == theirs.numel() >= 700
    spread = theirs.std().item()
    assert abs(ours.mean().item() - theirs.mean().item()) < 0.2 * spread
    assert ours.std().item() == pytest.approx(spread, rel=0.1)
    if theirs.abs().max() < 2 * spread:  # uniform
        assert ours.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.02)


def test_a_decoder_layer_starts_as_the_reference_does() -> None:
    theirs = reference.Mask2FormerMaskedAttentionDecoderLayer(config_of(PAPER))
    initialise(theirs)
    named = rename_mask2former(
        {f"transformer_module.decoder.layers.0.{k}": v for k, v in theirs.state_dict().items()}
    )
    ours = our_decoders(PAPER).get_submodule("mask_decoder.layers.0")
    for name, value in named.items():
        kind = name.removeprefix("mask_decoder.layers.0.")
        if kind.startswith("self_attention."):
            continue  # see the next test: transformers splits this projection only
        if value.dim() > 1:
            same_distribution(ours.get_parameter(kind), value)
        elif not kind.startswith("ffn."):
            assert torch.equal(ours.get_parameter(kind), value)


def test_both_attentions_start_as_one_fused_projection_does() -> None:
    """Mask2Former's own layers are ``nn.MultiheadAttention`` with Xavier weights."""
    fused = nn.MultiheadAttention(256, 8)
    nn.init.xavier_uniform_(fused.in_proj_weight)
    layer = our_decoders(PAPER).get_submodule("mask_decoder.layers.0")
    for attention in (layer.cross_attention, layer.self_attention):
        for linear, weight in zip(
            (attention.q_proj, attention.k_proj, attention.v_proj),
            fused.in_proj_weight.chunk(3),
            strict=True,
        ):
            same_distribution(linear.weight, weight)
            assert not linear.bias.any()
        assert not attention.out_proj.bias.any()


def test_embeddings_and_mask_head_start_as_the_reference_does() -> None:
    theirs = reference.Mask2FormerTransformerModule(256, config_of(PAPER))
    for part in theirs.modules():
        if isinstance(part, nn.Embedding | reference.Mask2FormerPredictionBlock):
            initialise(part)
    named = rename_mask2former(
        {f"transformer_module.{key}": value for key, value in theirs.state_dict().items()}
    )
    ours = our_decoders(PAPER)
    for name in (
        "query_features",
        "query_positions",
        "level_embed",
        *(f"mask_head.{index}.weight" for index in (0, 2, 4)),
    ):
        same_distribution(ours.get_parameter(f"mask_decoder.{name}"), named[f"mask_decoder.{name}"])
    assert ours.get_parameter("pixel_decoder.level_embed").std().item() == pytest.approx(1, rel=0.1)


def test_the_pixel_decoder_starts_with_xavier_and_uniform_weights() -> None:
    """Not stated in transformers; bounds by hand, from Mask2Former's own code."""
    decoder = our_decoders(PAPER).get_submodule("pixel_decoder")
    bounds = {
        "layers.0.ffn.fc1.weight": math.sqrt(6 / (256 + 1024)),
        "layers.0.ffn.fc2.weight": math.sqrt(6 / (256 + 1024)),
        "input_projections.0.0.weight": math.sqrt(6 / (256 + 256)),
        "lateral.0.weight": math.sqrt(3 / 256),
        "output.0.weight": math.sqrt(3 / (9 * 256)),
        "mask_projection.weight": math.sqrt(3 / 256),
    }
    for name, bound in bounds.items():
        weight = decoder.get_parameter(name)
        assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    for name in ("input_projections.0.0.bias", "mask_projection.bias"):
        assert not decoder.get_parameter(name).any()
