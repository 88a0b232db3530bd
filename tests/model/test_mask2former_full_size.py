"""Both decoders at the paper's size: 256 channels, 8 heads, 6 + 9 layers, 250 queries.

On the maps of a 1024 x 1024 image every layer is compared in float32, and the gradients exist.
Gradients are compared at a 256 x 256 image in float64: the gradients of ReLU and of bilinear
sampling jump at 0 and at cell centres, so that among millions of units and samples the rounding of
float32 puts a few on the other side, where a single entry differs by as much as its size (some
percent of the largest). In float64 none does.
"""

import pytest
import torch
from torch import Tensor

from possam.model import mask_decoder, pixel_decoder
from tests.support.mask2former_reference import (
    PAPER,
    Decoders,
    Run,
    compare_gradients,
    compare_input_gradients,
    compare_runs,
    decoders,
    gradients_of,
    random,
    reference,
    run_mask_decoders,
    run_pixel_decoders,
)
from tests.support.parity_report import Parity

pytestmark = pytest.mark.full_size

STRIDES = (4, 8, 16, 32)
SCALE = 0.05
DOUBLE = 1e-10
"""Bound of float64."""


def maps(image: int) -> list[Tensor]:
    """Maps of a square image at the four strides, finest first."""
    sides = [image // stride for stride in STRIDES]
    return [random(1, 256, side, side, seed=side) for side in sides]


def assert_gradients_agree_as_a_whole(ours: Run, theirs: Run) -> None:
    """Single entries may jump (see above), but not the direction or the size of the gradient."""
    for mine, yours in zip(ours.inputs, theirs.inputs, strict=True):
        assert mine.grad is not None and yours.grad is not None
        assert (mine.grad - yours.grad).norm() < 1e-2 * yours.grad.norm()


@pytest.mark.parity("pixel_decoder")
def test_pixel_decoder_on_a_large_image(parity: Parity) -> None:
    pair = decoders(PAPER, scale=SCALE)
    ours, theirs = run_pixel_decoders(pair, maps(1024))
    assert sum("layer" in name for name in ours.outputs) == 6
    compare_runs(parity, ours, theirs)
    assert_gradients_agree_as_a_whole(ours, theirs)


@pytest.mark.parity("mask_decoder")
def test_mask_decoder_on_a_large_image(parity: Parity) -> None:
    pair = decoders(PAPER, scale=SCALE)
    mask_features, *levels = maps(1024)
    ours, theirs, shared = run_mask_decoders(pair, levels[::-1], mask_features)
    assert shared.places == 250 * 3 * (32**2 + 64**2 + 128**2)
    # Ours would differ in hardly any place, and only where the logit is 0 but for rounding.
    assert shared.flipped <= 1e-6 * shared.places and shared.largest < 1e-6
    assert sum("mask logits" in name for name in ours.outputs) == 10
    compare_runs(parity, ours, theirs)
    assert_gradients_agree_as_a_whole(ours, theirs)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code that keeps float32 against bfloat16 keep float64, with exact positions."""

    def positions(height: int, width: int, channels: int, *, device: torch.device) -> Tensor:
        embed = reference.Mask2FormerSinePositionEmbedding(channels // 2, normalize=True)
        exact = embed(torch.Size((1, 1, height, width)), device, torch.float64)
        return exact[0].flatten(1).T

    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: tensor)
    for module in (pixel_decoder, mask_decoder):
        monkeypatch.setattr(module, "sine_positions", positions)


def as_double(pair: Decoders) -> None:
    pair.ours.double()
    pair.theirs.double()


@pytest.mark.parity("pixel_decoder")
def test_gradients_of_the_pixel_decoder(parity: Parity, double: None) -> None:
    pair = decoders(PAPER, scale=SCALE)
    as_double(pair)
    ours, theirs = run_pixel_decoders(pair, [level.double() for level in maps(256)])
    compare_runs(parity, ours, theirs, bound=DOUBLE)
    compare_input_gradients(parity, ours, theirs, bound=DOUBLE)
    wanted = gradients_of(pair.theirs, prefix="pixel_decoder.")
    compare_gradients(parity, pair.our_pixel, wanted, bound=DOUBLE)


@pytest.mark.parity("mask_decoder")
def test_gradients_of_the_mask_decoder(parity: Parity, double: None) -> None:
    pair = decoders(PAPER, scale=SCALE)
    as_double(pair)
    mask_features, *levels = (level.double() for level in maps(256))
    ours, theirs, shared = run_mask_decoders(pair, levels[::-1], mask_features)
    parity.equal(shared.flipped, 0)
    compare_runs(parity, ours, theirs, bound=DOUBLE)
    compare_input_gradients(parity, ours, theirs, bound=DOUBLE)
    wanted = gradients_of(pair.theirs, prefix="mask_decoder.")
    compare_gradients(parity, pair.our_mask, wanted, bound=DOUBLE)
