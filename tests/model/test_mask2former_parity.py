"""The deformable attention and both decoders against transformers' Mask2Former.

Weights reach ours through the converter (``training.mask2former``), which this tests too.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from possam.model import mask_decoder as mask_decoder_module
from possam.model.layers import MultiHeadAttention, sine_positions
from possam.model.mask_decoder import attention_mask
from possam.model.pixel_decoder import (
    DeformableAttention,
    reference_points,
)
from tests.support.mask2former_reference import (
    GRADIENT,
    LAYER,
    WHOLE,
    Sizes,
    compare_gradients,
    compare_input_gradients,
    compare_runs,
    decoders,
    gradients_of,
    leaves,
    random,
    randomise,
    reference,
    run_mask_decoders,
    run_pixel_decoders,
)
from tests.support.parity_report import Parity

SMALL = Sizes()
SHAPES = [(3, 4), (5, 7), (10, 13)]
FINEST = (20, 26)
CPU = torch.device("cpu")


@pytest.mark.parity("pixel_decoder")
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (32, 3)])
def test_sine_positions(shape: tuple[int, int], parity: Parity) -> None:
    ours = sine_positions(*shape, 64, device=CPU)
    embed = reference.Mask2FormerSinePositionEmbedding(32, normalize=True)
    theirs = embed(torch.Size((1, 1, *shape)), CPU, torch.float32)
    parity.close(ours, theirs[0].flatten(1).T, bound=LAYER)


@pytest.mark.parity("deformable_attention")
@pytest.mark.parametrize(
    ("shapes", "heads", "points"),
    [(SHAPES, 4, 4), ([(6, 5)], 1, 1), ([(1, 1), (1, 9), (7, 2), (4, 4)], 8, 3)],
)
@pytest.mark.parametrize("reach", [0.02, 0.3])
def test_deformable_attention(
    shapes: list[tuple[int, int]], heads: int, points: int, reach: float, parity: Parity
) -> None:
    """``reach``: size of the weights; at 0.3 many samples fall outside the maps."""
    options = {"channels": 64, "heads": heads, "levels": len(shapes), "points": points}
    ours = DeformableAttention(**options)
    theirs = reference.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        *options.values()
    )
    randomise(theirs, seed=0, scale=reach)
    ours.load_state_dict(theirs.state_dict())
    centres = reference_points(shapes, device=CPU)
    outputs, gradients = [], []
    for module in (ours, theirs):
        query = random(2, len(centres), 64, seed=1).requires_grad_()
        value = random(2, len(centres), 64, seed=2).requires_grad_()
        if module is ours:
            out = ours(query, value, references=centres, shapes=shapes)
        else:
            out, _ = theirs(
                query,
                encoder_hidden_states=value,
                reference_points=centres[None, :, None].expand(2, -1, len(shapes), -1),
                spatial_shapes_list=shapes,
            )
        out.backward(random(*out.shape, seed=3))
        outputs.append(out)
        gradients.append([query.grad, value.grad])
    parity.close(*outputs, bound=LAYER)
    for mine, yours in zip(*gradients, strict=True):
        parity.close(mine, yours, bound=GRADIENT)
    compare_gradients(parity, ours, {n: p.grad for n, p in theirs.named_parameters()})


@pytest.mark.parity("deformable_attention")
def test_samples_lie_right_of_and_below_their_reference(parity: Parity) -> None:
    """Offsets are (x, y) in cells, the reference a cell's centre; by hand, not by the reference."""
    attention = DeformableAttention(channels=4, heads=1, levels=1, points=1)
    with torch.no_grad():
        for linear in (attention.value_proj, attention.output_proj):
            linear.weight.copy_(torch.eye(4))
        attention.sampling_offsets.bias.copy_(torch.tensor([2.0, 1.0]))
    value = torch.arange(12.0).view(1, 12, 1).expand(-1, -1, 4)
    places = reference_points([(3, 4)], device=CPU)
    out = attention(torch.zeros(1, 12, 4), value, references=places, shapes=[(3, 4)])
    # 2 to the right and 1 down in a map of 3 rows and 4 columns; zero beyond its border
    expected = [6, 7, 0, 0, 10, 11, 0, 0, 0, 0, 0, 0]
    parity.close(out[0, :, 0], torch.tensor(expected).float(), bound=LAYER)


@pytest.mark.parity("deformable_attention")
def test_reference_points(parity: Parity) -> None:
    ratios = torch.ones(1, len(SHAPES), 2)
    theirs = reference.Mask2FormerPixelDecoderEncoderOnly.get_reference_points(SHAPES, ratios, CPU)
    for level in range(len(SHAPES)):
        parity.close(reference_points(SHAPES, device=CPU), theirs[0, :, level], bound=LAYER)


@pytest.mark.parity("pixel_decoder")
def test_one_deformable_layer(parity: Parity) -> None:
    pair = decoders(SMALL)
    ours, theirs = pair.our_pixel.layers[0], pair.their_pixel.encoder.layers[0]
    centres = reference_points(SHAPES, device=CPU)
    tokens, positions = random(2, len(centres), 64, seed=1), random(len(centres), 64, seed=2)
    (expected,) = theirs(
        tokens,
        torch.zeros(2, len(centres), dtype=torch.bool),
        position_embeddings=positions[None],
        reference_points=centres[None, :, None].expand(2, -1, 3, -1),
        spatial_shapes_list=SHAPES,
    )
    found = ours(tokens, positions, references=centres, shapes=SHAPES)
    parity.close(found, expected, bound=LAYER)


def feature_maps(sizes: Sizes) -> list[Tensor]:
    """Four maps, finest first."""
    shapes = [FINEST, *reversed(SHAPES)]
    return [
        random(2, width, *shape, seed=10 + index)
        for index, (width, shape) in enumerate(zip(sizes.widths, shapes, strict=True))
    ]


@pytest.mark.parity("pixel_decoder")
def test_pixel_decoder_in_every_layer_with_gradients(parity: Parity) -> None:
    pair = decoders(SMALL)
    ours, theirs = run_pixel_decoders(pair, feature_maps(SMALL))
    assert sum("layer" in name for name in ours.outputs) == SMALL.encoder_layers
    compare_runs(parity, ours, theirs)
    compare_input_gradients(parity, ours, theirs)
    wanted = gradients_of(pair.theirs, prefix="pixel_decoder.")
    compare_gradients(parity, pair.our_pixel, wanted)


@pytest.mark.parity("mask_decoder")
@pytest.mark.parametrize("level", range(3))
def test_one_masked_layer_with_gradients(level: int, parity: Parity) -> None:
    pair = decoders(SMALL)
    ours, theirs = pair.our_mask.layers[1], pair.their_mask.decoder.layers[1]
    tokens = SHAPES[level][0] * SHAPES[level][1]
    values, positions = random(2, tokens, 64, seed=1), random(tokens, 64, seed=2)
    query_positions = random(9, 64, seed=3)
    allowed = attention_mask(random(2, 9, tokens, seed=4))
    inputs = [random(2, 9, 64, seed=5).requires_grad_() for _ in range(2)]
    found = ours(
        inputs[0], query_positions, keys=values + positions, values=values, allowed=allowed
    )
    stages = [torch.empty(0)] * 3
    stages[level] = values.transpose(0, 1)
    places = [torch.empty(0)] * 3
    places[level] = positions[:, None]
    expected = theirs(
        inputs[1].transpose(0, 1),
        level,
        None,
        places,
        query_positions[:, None].expand(-1, 2, -1),
        stages,
        encoder_attention_mask=~allowed.repeat_interleave(SMALL.heads, 0),
    )[0].transpose(0, 1)
    parity.close(found, expected, bound=LAYER)
    goal = random(2, 9, 64, seed=6)
    (found * goal).sum().backward()
    (expected * goal).sum().backward()
    parity.close(inputs[0].grad, inputs[1].grad, bound=GRADIENT)
    wanted = gradients_of(pair.theirs, prefix="mask_decoder.layers.1.")
    compare_gradients(parity, ours, wanted)


def mask_inputs(common: float) -> tuple[list[Tensor], Tensor]:
    """Three maps, and mask features whose cells share a part ``common`` times as large.

    The shared parts of the two images are opposite: what is inside in one is outside in the other.
    """
    maps = [random(2, 64, *shape, seed=20 + i) for i, shape in enumerate(SHAPES)]
    shared = random(1, 64, 1, 1, seed=31)
    features = random(2, 64, *FINEST, seed=30) + common * torch.cat((shared, -shared))
    return maps, features


@pytest.mark.parity("mask_decoder")
@pytest.mark.parametrize("common", [0.0, 3.0])
def test_mask_decoder_in_every_layer_with_gradients(common: float, parity: Parity) -> None:
    """With a large common part the masks of many queries are empty."""
    pair = decoders(SMALL, seed=5, scale=0.2)
    ours, theirs, shared = run_mask_decoders(pair, *mask_inputs(common))
    parity.equal(shared.flipped, 0)  # no attention mask differs in a single place
    assert shared.places == sum(2 * 9 * h * w for h, w in [*SHAPES, SHAPES[0]])
    compare_runs(parity, ours, theirs)
    compare_input_gradients(parity, ours, theirs)
    compare_gradients(parity, pair.our_mask, gradients_of(pair.theirs, prefix="mask_decoder."))
    # The comparison means something only if masks restrict attention, and some are empty.
    inside = torch.stack([ours.outputs[f"mask logits {index}"] > 0 for index in range(5)])
    assert 0.2 < inside.float().mean() < 0.8
    assert (~inside).all(-1).any() == bool(common)


@pytest.mark.parity("mask_decoder")
def test_both_decoders_in_a_row_with_gradients(parity: Parity) -> None:
    pair = decoders(SMALL)
    mine, yours = leaves(feature_maps(SMALL)), leaves(feature_maps(SMALL))
    features, levels, shapes = pair.our_pixel(mine)
    _, embeddings = pair.our_mask(levels, features, shapes=shapes, all_layers=True)
    found = embeddings @ features.flatten(2)[:, None]
    decoded = pair.their_pixel(yours)
    result = pair.their_mask(decoded.multi_scale_features, decoded.mask_features)
    expected = torch.stack(result.masks_queries_logits, 1).flatten(3)
    parity.close(found, expected, bound=WHOLE)
    goal = random(*found.shape, seed=40)
    for logits in (found, expected):
        (logits * goal).sum().backward()
    for found_map, wanted in zip(mine, yours, strict=True):
        parity.close(found_map.grad, wanted.grad, bound=GRADIENT)
    compare_gradients(parity, pair.ours, gradients_of(pair.theirs))


def test_the_last_layer_alone_is_the_last_of_all() -> None:
    decoder = decoders(SMALL).our_mask
    maps, features = mask_inputs(0.0)
    levels = [level.flatten(2).transpose(1, 2) for level in maps]
    every = decoder(levels, features, shapes=SHAPES, all_layers=True)
    last = decoder(levels, features, shapes=SHAPES)
    for all_layers, one in zip(every, last, strict=True):
        assert torch.equal(all_layers[:, -1:], one)


@pytest.mark.parity("mask_decoder")
def test_attention_masks(parity: Parity) -> None:
    """Inside where the probability is at least one half; an empty mask allows everything."""
    logits = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, -2.0, -0.5], [3.0, 1.0, 2.0]]])
    expected = torch.tensor([[[1, 0, 1], [1, 1, 1], [1, 1, 1]]]).bool()
    parity.equal(attention_mask(logits), expected)
    predictor = reference.Mask2FormerMaskPredictor(3, 1, 3)
    predictor.mask_embedder = torch.nn.Identity()
    # queries that are unit vectors read the three maps of a 1 x 3 image
    _, blocked = predictor(torch.eye(3)[:, None], logits[:, :, None], (1, 3))
    parity.equal(attention_mask(logits)[:, 0], ~blocked[:, 0])


def test_masked_queries_cannot_see_outside_and_empty_masks_see_everything() -> None:
    allowed = attention_mask(torch.tensor([[[1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]]]))
    attention = MultiHeadAttention(channels=8, heads=2)
    query, keys = random(1, 2, 8, seed=0), random(1, 3, 8, seed=1)
    before = attention(query, keys, keys, allowed=allowed)
    keys[:, 1:] = 9.0
    after = attention(query, keys, keys, allowed=allowed)
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_attention_masks_keep_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask has no gradient; kept for one, its logits would double the decoder's memory."""
    seen: list[bool] = []

    def watched(logits: Tensor) -> Any:
        seen.append(logits.requires_grad)
        return attention_mask(logits)

    monkeypatch.setattr(mask_decoder_module, "attention_mask", watched)
    maps, features = mask_inputs(0.0)
    levels = [level.flatten(2).transpose(1, 2) for level in maps]
    features.requires_grad_()
    decoders(SMALL).our_mask(levels, features, shapes=SHAPES)
    assert seen == [False] * SMALL.decoder_layers
