"""What is written for speed against the plain functions that it replaces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.ops.attention import attend, attend_plain, softmax_of_short_rows
from possam.model.ops.resampling import resample_area

SIDES = st.integers(1, 9)


def heads(seed: int, *, queries: int = 5, tokens: int = 7) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    sizes = (queries, tokens, tokens)
    return [torch.randn(2, 3, size, 4, generator=draw).requires_grad_() for size in sizes]


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_pytorchs(masked: bool) -> None:
    allowed = torch.eye(5, 7, dtype=torch.bool).expand(2, 1, -1, -1) if masked else None
    found = []
    for function in (attend, attend_plain):
        inputs = heads(0)
        out = function(*inputs, allowed=allowed)
        found.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    for mine, plain in zip(*found, strict=True):
        assert_close(mine, plain)


def test_attention_on_a_cpu_is_computed_in_float32() -> None:
    """Also under autocast, whose own attention would round the scores to bfloat16."""
    inputs = [part.detach().bfloat16() for part in heads(1)]
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs)
    assert found.dtype == torch.float32
    assert_close(found, attend_plain(*(part.float() for part in inputs)))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=3), st.integers(1, 13), st.integers(0, 999))
def test_softmax_of_short_rows_is_softmax(batch: list[int], count: int, seed: int) -> None:
    found = []
    for function in (softmax_of_short_rows, lambda rows: rows.softmax(-1)):
        rows = 5 * torch.randn(*batch, count, generator=torch.Generator().manual_seed(seed))
        rows.requires_grad_()
        out = function(rows)
        found.append([out, *torch.autograd.grad(out.square().sum(), rows)])
    for mine, plain in zip(*found, strict=True):
        assert_close(mine, plain)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 16), st.integers(1, 16), st.booleans(), st.integers(0, 999))
def test_resampling_by_area_is_interpolation(
    height: int, width: int, down: int, right: int, half: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    kind = torch.bfloat16 if half else torch.float32
    for extra, count in ((0, 3), (1, 3), (0, 0), (1, 0)):
        shape = (2, count, height * down, width * right + extra)
        masks = (torch.rand(shape, generator=draw) < 0.4).to(kind)
        found = resample_area(masks, (height, width))
        assert found.dtype == kind and found.shape == (2, count, height, width)
        if not count:
            continue
        expected = F.interpolate(masks.double(), size=(height, width), mode="area")
        tolerance = 2**-7 if half else 1e-6
        assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
