"""Layers that several parts share."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from possam.model.layers import area_resample, attend_to_two, double_bilinear, resize_bilinear

SIDES = st.integers(1, 9)


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, st.integers(1, 8), st.integers(1, 8), st.booleans(), st.integers(0, 999))
def test_bilinear_resizing_is_interpolation(
    height: int, width: int, down: int, right: int, half: bool, seed: int
) -> None:
    """Whole factors, even and odd: shrunk; and, the sizes swapped, enlarged."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.bfloat16 if half else torch.float32
    large, small = (height * down, width * right), (height, width)
    for source, size in ((large, small), (small, large), (large, (height, 2 * width + 1))):
        maps = torch.randn(2, 3, *source, generator=draw).to(kind)
        found = resize_bilinear(maps, size)
        expected = F.interpolate(maps.float(), size=size, mode="bilinear", align_corners=False)
        assert found.dtype == kind
        tolerance = 2**-8 if half else 1e-6
        torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


def test_middle_cells_by_hand() -> None:
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    assert resize_bilinear(maps, (1, 1)).item() == (5 + 6 + 9 + 10) / 4
    assert resize_bilinear(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert resize_bilinear(maps, (2, 1)).flatten().tolist() == pytest.approx([3.5, 11.5])


@settings(max_examples=80, deadline=None)
@given(SIDES, SIDES, st.integers(1, 16), st.integers(1, 16), st.booleans(), st.integers(0, 999))
def test_area_resampling_of_masks_is_interpolation(
    height: int, width: int, down: int, right: int, half: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    size = (height, width)
    for extra in (0, 1):
        shape = (2, 3, height * down, width * right + extra)
        masks = (torch.rand(shape, generator=draw) < 0.4).to(
            torch.bfloat16 if half else torch.float
        )
        found = area_resample(masks, size)
        expected = F.interpolate(masks.double(), size=size, mode="area")
        assert found.dtype == masks.dtype
        exact = extra == 0 and down == right and down in (1, 2, 4, 8, 16)
        tolerance = 0.0 if exact else 2**-7 if half else 1e-6
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.integers(1, 3), st.integers(0, 999))
def test_doubling_and_its_gradient_are_those_of_interpolation(
    height: int, width: int, channels: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, channels, height, width, generator=draw)
    gradient = torch.randn(2, channels, 2 * height, 2 * width, generator=draw)
    found = []
    for double in (
        double_bilinear,
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    ):
        leaf = maps.clone().requires_grad_()
        out = double(leaf)
        out.backward(gradient)
        found.append((out.detach(), leaf.grad))
    (out, d_maps), (expected, d_expected) = found
    assert torch.equal(out, expected)
    torch.testing.assert_close(d_maps, d_expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(0, 999))
def test_attention_to_two_is_attention(heads: int, queries: int, channels: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> torch.Tensor:
        return 3 * torch.randn(2, heads, count, channels, generator=draw, dtype=torch.float64)

    inputs = [one.requires_grad_() for one in (tokens(queries), tokens(2), tokens(2))]
    found = []
    for attend in (attend_to_two, F.scaled_dot_product_attention):
        out = attend(*inputs)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs)
