"""Normalisation against PyTorch's, and its derivatives against exact sums."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.norms import GroupNorm, LayerNorm, LayerNorm2d, exchange_layer_norms


def drawn(module: nn.Module, draw: torch.Generator) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=draw)
    return module


def derivatives(
    normal: Callable[[Tensor], Tensor], inputs: Tensor, gradient: Tensor, *others: Tensor
) -> list[Tensor]:
    leaf = inputs.clone(memory_format=torch.preserve_format).requires_grad_()
    out = normal(leaf)
    return [out, *torch.autograd.grad(out, (leaf, *others), gradient)]


def exactly(norm: LayerNorm, tokens: Tensor, gradient: Tensor) -> list[Tensor]:
    """The same in float64."""
    weight, bias = (part.detach().double().requires_grad_() for part in (norm.weight, norm.bias))

    def normal(x: Tensor) -> Tensor:
        return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)

    return derivatives(normal, tokens.double(), gradient.double(), weight, bias)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 9), max_size=2),
    st.integers(1, 70),
    st.floats(-20, 20),
    st.integers(0, 999),
)
def test_layer_norm_in_bfloat16_is_the_exact_one_rounded(
    batch: list[int], channels: int, offset: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm = drawn(LayerNorm(channels), draw)
    shape = (*batch, channels)
    tokens, gradient = (
        (torch.randn(shape, generator=draw) + shift).bfloat16() for shift in (offset, 0.0)
    )
    found = derivatives(norm, tokens, gradient, norm.weight, norm.bias)
    assert [part.dtype for part in found] == 2 * [torch.bfloat16] + 2 * [torch.float32]
    for index, (mine, exact) in enumerate(zip(found, exactly(norm, tokens, gradient), strict=True)):
        assert mine.shape == exact.shape
        size = exact.abs().max().item() if exact.numel() else 0.0
        tolerance = (2**-8 if index < 2 else 1e-4) * size + 1e-4
        torch.testing.assert_close(mine.double(), exact, rtol=2**-8, atol=tolerance)


def test_long_sums_of_one_sign_keep_their_value() -> None:
    """50,000 gradients of 1: in bfloat16 their sum would stop at 256."""
    norm = LayerNorm(4)
    tokens = torch.tensor([3.0, -1.0, 1.0, -3.0]).expand(50_000, 4).bfloat16()
    out = derivatives(norm, tokens, torch.ones_like(tokens), norm.weight, norm.bias)
    assert out[3].tolist() == [50_000.0] * 4
    normal = tokens[0].double() / 5**0.5
    torch.testing.assert_close(out[2].double(), 50_000 * normal, rtol=1e-5, atol=0.0)


def test_layer_norm_of_other_types_is_pytorchs() -> None:
    draw = torch.Generator().manual_seed(1)
    norm = drawn(LayerNorm(6), draw)
    tokens = torch.randn(5, 6, generator=draw)
    assert torch.equal(norm(tokens), nn.LayerNorm.forward(norm, tokens))
    wide = norm.double()
    assert torch.autograd.gradcheck(wide, tokens.double().requires_grad_())


def test_rounding_is_to_the_nearest_and_leaves_nan() -> None:
    """As PyTorch rounds: the kernel stores bits, and a carry must reach the exponent."""
    norm = LayerNorm(2, eps=0.0)
    tokens = torch.tensor([[1.0, -1.0], [float("nan"), 1.0], [float("inf"), 0.0]]).bfloat16()
    with torch.no_grad():
        for value in (1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 2 - 2**-9, 2 - 2**-8, 3.4e38):
            norm.weight.fill_(value)
            out = norm(tokens)
            assert torch.equal(out[0], torch.tensor([value, -value]).bfloat16())
            assert out[1:].isnan().all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layer_norm_over_channels_in_any_layout(layout: torch.memory_format) -> None:
    draw = torch.Generator().manual_seed(2)
    norm = drawn(LayerNorm2d(8), draw)
    maps, gradient = (
        torch.randn(2, 8, 17, 19, generator=draw).bfloat16().to(memory_format=layout)
        for _ in range(2)
    )
    found = derivatives(norm, maps, gradient, norm.weight, norm.bias)
    rows = [part.permute(0, 2, 3, 1) for part in (maps, gradient)]
    out, d_maps, *rest = exactly(norm, *rows)
    expected = [out.permute(0, 3, 1, 2), d_maps.permute(0, 3, 1, 2), *rest]
    for mine, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), exact, rtol=2**-7, atol=2e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [48, 64, 7])
@pytest.mark.parametrize("size", [(5, 4), (33, 40)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_group_norm_is_pytorchs(
    channels: int, size: tuple[int, int], layout: torch.memory_format, kind: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(channels)
    norm = drawn(GroupNorm(channels), draw)
    maps = 2 * torch.randn(3, channels, *size, generator=draw) + 1
    gradient = torch.randn(maps.shape, generator=draw)
    maps, gradient = (part.to(kind).to(memory_format=layout) for part in (maps, gradient))
    found = derivatives(norm, maps, gradient, norm.weight, norm.bias)
    weight, bias = (part.detach().double().requires_grad_() for part in (norm.weight, norm.bias))
    exact = derivatives(
        lambda x: F.group_norm(x, norm.num_groups, weight, bias, norm.eps),
        maps.double(),
        gradient.double(),
        weight,
        bias,
    )
    rounding = 1e-4 if kind == torch.float32 else 2**-7
    for index, (mine, theirs) in enumerate(zip(found, exact, strict=True)):
        precision = rounding if index < 2 else 1e-4
        size_of = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double(), theirs, rtol=precision, atol=precision * size_of)


def test_derivatives_of_group_norm() -> None:
    norm = GroupNorm(4).double()
    maps = torch.randn(2, 4, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(norm, maps.requires_grad_())


def test_threads_change_nothing() -> None:
    draw = torch.Generator().manual_seed(3)
    layer, group = drawn(LayerNorm2d(8), draw), drawn(GroupNorm(8), draw)
    maps, gradient = (torch.randn(3, 8, 80, 81, generator=draw).bfloat16() for _ in range(2))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(
                [
                    part
                    for norm in (layer, group)
                    for part in derivatives(norm, maps, gradient, norm.weight, norm.bias)[1:]
                ]
            )
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


def test_another_packages_norms_are_exchanged_with_their_weights() -> None:
    module = TwoWayTransformer(depth=1, embedding_dim=8, num_heads=2, mlp_dim=8)
    before = dict(module.named_parameters())
    exchange_layer_norms(module)
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())
    norms = [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 5 and all(isinstance(part, LayerNorm) for part in norms)
