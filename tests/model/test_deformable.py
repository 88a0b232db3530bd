"""What deformable attention samples: sums over samples, their derivatives, threads."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from possam.model.ops import compiled_sampling, deformable
from possam.model.ops.deformable import sample_plain, sample_sum
from possam.model.pixel_decoder import DeformableAttention, reference_points

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPES = [(2, 3), (4, 1)]


def _inputs(
    shapes: list[tuple[int, int]], *, heads: int = 2, channels: int = 3, reach: float = 1.5,
    dtype: torch.dtype = torch.float64, seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Values, offsets and weights of two images, one query a cell, three points a level."""
    draw = torch.Generator().manual_seed(seed)
    cells = sum(height * width for height, width in shapes)
    values = torch.randn(2, cells, heads, channels, generator=draw, dtype=dtype)
    sites = (2, cells, heads, len(shapes), 3)
    offsets = reach * torch.randn(*sites, 2, generator=draw, dtype=dtype)
    weights = torch.rand(*sites, generator=draw, dtype=dtype)
    return values.requires_grad_(), offsets.requires_grad_(), weights.requires_grad_()


def _places(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float64) -> Tensor:
    return reference_points(shapes, device=CPU).to(dtype)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels", [3, 9])
def test_derivatives(channels: int) -> None:
    def sampled(*inputs: Tensor) -> Tensor:
        return sample_sum(*inputs, references=_places(SHAPES), shapes=SHAPES)

    assert torch.autograd.gradcheck(sampled, _inputs(SHAPES, channels=channels))


@settings(deadline=None, max_examples=60)
@given(
    sides=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 20),
    single=st.booleans(),
    reach=st.sampled_from([0.0, 0.4, 2.0, 50.0]),
    whole=st.booleans(),
    seed=st.integers(0, 999),
)
def test_sums_and_derivatives_are_those_of_grid_sample(
    sides: list[tuple[int, int]],
    heads: int,
    channels: int,
    single: bool,
    reach: float,
    whole: bool,
    seed: int,
) -> None:
    """Also for samples in cells' centres (``whole``), on the border and far outside."""
    kind = torch.float32 if single and not whole else torch.float64
    found = []
    for sampler in (sample_sum, sample_plain):
        values, offsets, weights = _inputs(
            sides, heads=heads, channels=channels, reach=reach, dtype=kind, seed=seed
        )
        placed = offsets.round() if whole else offsets
        out = sampler(values, placed, weights, references=_places(sides, kind), shapes=sides)
        grad_output = torch.randn(
            out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype
        )
        out.backward(grad_output)
        derivatives = [values.grad, weights.grad]
        if reach and not whole:  # in a cell's centre the slopes of both sides are right
            derivatives.append(offsets.grad)
        found.append([out, *derivatives])
    tolerance = 1e-9 if kind == torch.float64 else 2e-3  # places far outside are rounded, too
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def test_a_sample_between_four_cells_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1).requires_grad_()
    # From the middle of a map of 2 x 2 a quarter of a cell to the right, half a cell up.
    offsets = torch.tensor([0.25, -0.5]).view(1, 1, 1, 1, 1, 2).requires_grad_()
    weights = torch.full((1, 1, 1, 1, 1), 2.0, requires_grad=True)
    centre = torch.tensor([[0.5, 0.5]])
    out = sample_sum(values, offsets, weights, references=centre, shapes=[(2, 2)])
    out.backward(torch.ones_like(out))
    assert out.item() == 2 * (0.25 * 1 + 0.75 * 2)
    assert values.grad is not None and values.grad.flatten().tolist() == [0.5, 1.5, 0.0, 0.0]
    assert weights.grad is not None and weights.grad.item() == 1.75
    # Down from there: three quarters of the way from 2 to 4, a quarter from 1 to 3.
    assert offsets.grad is not None and offsets.grad.flatten().tolist() == [2.0, 4.0]


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -1e30, 1e30])
def test_places_that_are_none_touch_no_cell(place: float) -> None:
    values = torch.ones(1, 4, 1, 1, requires_grad=True)
    offsets = torch.full((1, 1, 1, 1, 1, 2), place)
    weights = torch.ones(1, 1, 1, 1, 1)
    centre = torch.tensor([[0.5, 0.5]])
    out = sample_sum(values, offsets, weights, references=centre, shapes=[(2, 2)])
    out.sum().backward()
    assert out.item() == 0 and values.grad is not None and not values.grad.any()


def test_threads_change_no_bit(threads: Callable[[int], None]) -> None:
    found = []
    for count in (1, 3):
        threads(count)
        inputs = _inputs([(5, 4), (3, 3)], channels=19, dtype=torch.float32)
        places = _places([(5, 4), (3, 3)], torch.float32)
        out = sample_sum(*inputs, references=places, shapes=[(5, 4), (3, 3)])
        out.square().sum().backward()
        found.append([out, *(value.grad for value in inputs)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_batch_without_images() -> None:
    values, offsets, weights = (part[:0] for part in _inputs(SHAPES))
    out = sample_sum(values, offsets, weights, references=_places(SHAPES), shapes=SHAPES)
    assert out.shape == (0, 10, 6)


def test_weights_of_a_query_sum_to_one() -> None:
    layer = DeformableAttention(channels=8, heads=2, levels=2, points=3)
    torch.nn.init.normal_(layer.attention_weights.weight)
    ones = torch.zeros(1, 10, 8)
    with torch.no_grad():
        # Everything that is sampled is one, and nothing lies outside: so are the sums.
        layer.value_proj.weight.zero_()
        layer.value_proj.bias.fill_(1.0)
        layer.sampling_offsets.bias.zero_()
        layer.output_proj.weight.copy_(torch.eye(8))
        query = torch.randn(1, 10, 8, generator=torch.Generator().manual_seed(0))
        layer.sampling_offsets.weight.zero_()
        shapes = [(2, 3), (4, 1)]
        centre = torch.full((10, 2), 0.5)
        out = layer(query, ones, references=centre, shapes=shapes)
    assert_close(out, torch.ones_like(out))


def test_loops_serve_a_cpu_and_triton_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """``possam.pipeline.codehash.DEVICE_CODE`` leaves out the other one of the two."""
    monkeypatch.setattr(deformable, "_triton_sampler", lambda device: sample_plain)
    assert deformable._sampler(CPU) is compiled_sampling.sample_sum
    assert deformable._sampler(CUDA) is sample_plain
