"""Layer normalisation: PyTorch's numbers, and gradients summed in the weights' precision."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything.modeling import TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.layers import LayerNorm, LayerNorm2d, exchange_layer_norms


def derivatives(norm: nn.LayerNorm, tokens: Tensor, grad_output: Tensor) -> list[Tensor]:
    """The result, and the gradients of the tokens, weight and bias."""
    leaf = tokens.clone().requires_grad_()
    out = norm(leaf)
    return [out, *torch.autograd.grad(out, (leaf, norm.weight, norm.bias), grad_output)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.integers(2, 70), st.floats(-20, 20), st.integers(0, 999))
def test_layer_norm_in_bfloat16_is_the_exact_one_rounded(
    rows: int, channels: int, offset: float, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    norm = LayerNorm(channels)
    nn.init.normal_(norm.weight, generator=draw)
    tokens = (torch.randn(rows, channels, generator=draw) + offset).bfloat16()
    grad_output = torch.randn(rows, channels, generator=draw).bfloat16()
    found = derivatives(norm, tokens, grad_output)
    assert [part.dtype for part in found] == 2 * [torch.bfloat16] + 2 * [torch.float32]
    exact = nn.LayerNorm(channels).double()
    exact.load_state_dict(norm.state_dict())
    for mine, theirs in zip(
        found, derivatives(exact, tokens.double(), grad_output.double()), strict=True
    ):
        tolerance = 2**-7 * theirs.abs().max().item() + 1e-3
        assert_close(mine.double(), theirs, rtol=2**-8, atol=tolerance)


def test_long_sums_of_one_sign_keep_their_value() -> None:
    """50,000 gradients of 1: in bfloat16 their sum would stop at 256."""
    norm = LayerNorm(4)
    tokens = torch.tensor([3.0, -1.0, 1.0, -3.0]).expand(50_000, 4).bfloat16()
    _, _, d_weight, d_bias = derivatives(norm, tokens, torch.ones_like(tokens))
    assert d_bias.tolist() == [50_000.0] * 4
    assert_close(d_weight.double(), 50_000 * tokens[0].double() / 5**0.5, rtol=1e-3, atol=0.0)


def test_layer_norm_over_channels_of_a_map() -> None:
    maps = torch.randn(2, 8, 3, 5, generator=torch.Generator().manual_seed(2))
    norm = LayerNorm2d(8)
    nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(3))
    expected = F.layer_norm(maps.permute(0, 2, 3, 1), (8,), norm.weight, norm.bias, 1e-6)
    assert_close(norm(maps), expected.permute(0, 3, 1, 2))


def test_another_packages_norms_are_exchanged_with_their_weights() -> None:
    module = TwoWayTransformer(depth=1, embedding_dim=8, num_heads=2, mlp_dim=8)
    before = dict(module.named_parameters())
    exchange_layer_norms(module)
    after = dict(module.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[name] is value for name, value in before.items())
    norms = [part for part in module.modules() if isinstance(part, nn.LayerNorm)]
    assert len(norms) == 5 and all(isinstance(part, LayerNorm) for part in norms)
