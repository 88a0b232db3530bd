"""The deformable attention and both decoders against transformers' Mask2Former, weights copied."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from possam.model.deformable import DeformableAttention, SampleSum, reference_points
from possam.model.layers import MLP, MultiHeadAttention, sine_positions
from possam.model.mask_decoder import MaskDecoder, attention_mask
from possam.model.pixel_decoder import PixelDecoder

reference = pytest.importorskip("transformers.models.mask2former.modeling_mask2former")

HIDDEN, HEADS, QUERIES = 64, 4, 9
SHAPES = [(3, 4), (5, 7), (10, 13)]


def config() -> object:
    return reference.Mask2FormerConfig(
        feature_size=HIDDEN,
        mask_feature_size=HIDDEN,
        hidden_dim=HIDDEN,
        encoder_feedforward_dim=96,
        dim_feedforward=80,
        encoder_layers=2,
        decoder_layers=5,
        num_attention_heads=HEADS,
        num_queries=QUERIES,
        dropout=0.0,
        feature_strides=[4, 8, 16, 32],
        output_attentions=False,
        output_hidden_states=False,
    )


def randomise(module: nn.Module, *, seed: int, scale: float = 0.3) -> None:
    """Weights far from their initial values, so that no path is trivially zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def copy(target: nn.Module, source: nn.Module) -> None:
    """Copy by order: both modules hold the same layers in the same order."""
    target.load_state_dict(
        dict(zip(target.state_dict(), source.state_dict().values(), strict=True)), strict=True
    )


def copy_layers(target: nn.Module, source: nn.Module, pairs: dict[str, str]) -> None:
    for ours, theirs in pairs.items():
        copy(target.get_submodule(ours), source.get_submodule(theirs))


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sine_positions_match() -> None:
    ours = sine_positions(5, 7, HIDDEN, device=torch.device("cpu"))
    embed = reference.Mask2FormerSinePositionEmbedding(HIDDEN // 2, normalize=True)
    theirs = embed(torch.Size((1, 1, 5, 7)), torch.device("cpu"), torch.float32)
    assert_close(ours, theirs[0].flatten(1).T)


DEFORMABLE = {
    name: name for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
}


def test_deformable_attention_matches_with_gradients() -> None:
    ours = DeformableAttention(channels=HIDDEN, heads=HEADS, levels=3, points=4)
    theirs = reference.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        HIDDEN, HEADS, 3, 4
    )
    randomise(theirs, seed=0)  # offsets of several cells: many samples fall outside the maps
    copy_layers(ours, theirs, DEFORMABLE)
    count = sum(h * w for h, w in SHAPES)
    positions = random(count, HIDDEN, seed=1)
    points = reference_points(SHAPES, device=torch.device("cpu"))
    outputs, gradients = [], []
    for module in (ours, theirs):
        tokens = random(2, count, HIDDEN, seed=2).requires_grad_()
        if module is ours:
            out = ours(tokens + positions, tokens, references=points, shapes=SHAPES)
        else:
            out, _ = theirs(
                tokens,
                encoder_hidden_states=tokens,
                position_embeddings=positions[None],
                reference_points=points[None, :, None].expand(2, -1, 3, -1),
                spatial_shapes_list=SHAPES,
            )
        out.backward(random(*out.shape, seed=3))
        outputs.append(out)
        grads = [module.get_submodule(name).weight.grad for name in DEFORMABLE]
        gradients.append([tokens.grad, *grads])
    assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for mine, yours in zip(*gradients, strict=True):
        assert_close(mine, yours, rtol=1e-4, atol=1e-4 * float(yours.abs().max()))


def test_deformable_attention_starts_as_the_reference_does() -> None:
    ours = DeformableAttention(channels=HIDDEN, heads=HEADS, levels=3, points=4)
    model = reference.Mask2FormerModel
    theirs = reference.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        HIDDEN, HEADS, 3, 4
    )
    model._init_weights(type("Holder", (), {"config": config()})(), theirs)
    assert_close(ours.sampling_offsets.bias, theirs.sampling_offsets.bias)
    assert not ours.sampling_offsets.weight.any() and not ours.attention_weights.weight.any()


def test_sample_sum_gradients_are_those_of_finite_differences() -> None:
    maps = random(2, 3, 4, 5, seed=0).double().requires_grad_()
    grids = (random(2, 2, 6, 2, seed=1).double() * 0.7).requires_grad_()
    weights = random(2, 2, 6, seed=2).double().requires_grad_()
    assert torch.autograd.gradcheck(SampleSum.apply, (maps, grids, weights))


def pixel_decoders() -> tuple[PixelDecoder, nn.Module]:
    channels = (24, 32, 40, 48)
    ours = PixelDecoder(
        in_channels=channels,
        channels=HIDDEN,
        mask_channels=HIDDEN,
        heads=HEADS,
        layers=2,
        ffn=96,
        points=4,
    )
    theirs = reference.Mask2FormerPixelDecoder(config(), feature_channels=list(channels))
    randomise(theirs, seed=4, scale=0.1)
    pairs = {
        "lateral": "adapter_1",
        "output": "layer_1",
        "mask_projection": "mask_projection",
    }
    pairs |= {f"input_projections.{i}": f"input_projections.{i}" for i in range(3)}
    for i in range(2):
        ours_layer, theirs_layer = f"layers.{i}", f"encoder.layers.{i}"
        pairs |= {
            f"{ours_layer}.attention.{name}": f"{theirs_layer}.self_attn.{name}"
            for name in DEFORMABLE
        }
        pairs |= {
            f"{ours_layer}.attention_norm": f"{theirs_layer}.self_attn_layer_norm",
            f"{ours_layer}.ffn.fc1": f"{theirs_layer}.fc1",
            f"{ours_layer}.ffn.fc2": f"{theirs_layer}.fc2",
            f"{ours_layer}.ffn_norm": f"{theirs_layer}.final_layer_norm",
        }
    copy_layers(ours, theirs, pairs)
    ours.level_embed.data.copy_(theirs.level_embed)
    return ours, theirs


def test_pixel_decoder_matches() -> None:
    ours, theirs = pixel_decoders()
    sizes = [(20, 26), *reversed(SHAPES)]
    maps = [
        random(2, c, *size, seed=10 + c) for c, size in zip((24, 32, 40, 48), sizes, strict=True)
    ]
    mask_features, levels, shapes = ours(maps)
    expected = theirs(maps, return_dict=True)
    assert_close(mask_features, expected.mask_features, rtol=1e-4, atol=1e-5)
    assert shapes == SHAPES
    for tokens, level in zip(levels, expected.multi_scale_features, strict=True):
        assert_close(tokens.transpose(1, 2), level.flatten(2), rtol=1e-4, atol=1e-5)


def copy_attention(target: MultiHeadAttention, source: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        parts = zip(source.in_proj_weight.chunk(3), source.in_proj_bias.chunk(3), strict=True)
        linears = (target.q_proj, target.k_proj, target.v_proj)
        for linear, (weight, bias) in zip(linears, parts, strict=True):
            linear.weight.copy_(weight)
            linear.bias.copy_(bias)
    copy(target.out_proj, source.out_proj)


def copy_mask_head(target: MLP, source: nn.Module) -> None:
    for index in range(3):
        copy(target[2 * index], source.get_submodule(f"{index}.0"))


def mask_decoders() -> tuple[MaskDecoder, nn.Module]:
    ours = MaskDecoder(
        channels=HIDDEN, mask_channels=HIDDEN, queries=QUERIES, heads=HEADS, layers=4, ffn=80
    )
    theirs = reference.Mask2FormerTransformerModule(HIDDEN, config())
    randomise(theirs, seed=5, scale=0.2)
    with torch.no_grad():
        ours.query_features.copy_(theirs.queries_features.weight)
        ours.query_positions.copy_(theirs.queries_embedder.weight)
        ours.level_embed.copy_(theirs.level_embed.weight)
    copy(ours.norm, theirs.decoder.layernorm)
    copy_mask_head(ours.mask_head, theirs.decoder.mask_predictor.mask_embedder)
    for i, layer in enumerate(theirs.decoder.layers):
        target = ours.layers[i]
        copy_attention(target.cross_attention, layer.cross_attn)
        pairs = {
            "cross_norm": "cross_attn_layer_norm",
            "self_norm": "self_attn_layer_norm",
            "ffn.fc1": "fc1",
            "ffn.fc2": "fc2",
            "ffn_norm": "final_layer_norm",
        }
        pairs |= {
            f"self_attention.{name}": f"self_attn.{name}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        }
        copy_layers(target, layer, pairs)
    return ours, theirs


def test_mask_decoder_matches_in_every_layer() -> None:
    ours, theirs = mask_decoders()
    maps = [random(2, HIDDEN, *shape, seed=20 + i) for i, shape in enumerate(SHAPES)]
    mask_features = random(2, HIDDEN, 20, 26, seed=30)
    levels = [level.flatten(2).transpose(1, 2) for level in maps]
    regions, embeddings = ours(levels, mask_features, shapes=SHAPES, all_layers=True)
    masks = torch.einsum("blqc,bchw->blqhw", embeddings, mask_features)
    expected = theirs(maps, mask_features)
    assert regions.shape[1] == 5 == len(expected.masks_queries_logits)
    for layer in range(5):
        hidden = expected.intermediate_hidden_states[layer].transpose(0, 1)
        assert_close(regions[:, layer], hidden, rtol=1e-4, atol=1e-4)
        assert_close(masks[:, layer], expected.masks_queries_logits[layer], rtol=1e-4, atol=1e-3)
    # The comparison means something only if masks restrict attention, but not to nothing.
    share = (masks > 0).float().mean()
    assert 0.2 < share < 0.8
    last = ours(levels, mask_features, shapes=SHAPES)
    assert_close(last[0][:, 0], regions[:, -1])
    assert_close(last[1][:, 0], embeddings[:, -1])


def test_masked_queries_cannot_see_outside_and_empty_masks_see_everything() -> None:
    logits = torch.tensor([[[1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]])
    allowed = attention_mask(logits)
    assert allowed.tolist() == [[[True, False, False], [True, True, True]]]
    attention = MultiHeadAttention(channels=8, heads=2)
    query, keys = random(1, 2, 8, seed=0), random(1, 3, 8, seed=1)
    before = attention(query, keys, keys, allowed=allowed)
    keys[:, 1:] = 9.0
    after = attention(query, keys, keys, allowed=allowed)
    assert_close(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])
