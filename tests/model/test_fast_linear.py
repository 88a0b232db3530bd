"""Linear layers through oneDNN against PyTorch's own, and where they must not be taken."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.fast_linear import FastLinears, fast_linear, fast_linear_gelu, serves

sides = st.integers(0, 40)


def operands(seed: int, rows: tuple[int, ...], width: int, out: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((*rows, width), (out, width), (out,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


@settings(max_examples=60)
@given(
    seed=st.integers(0, 999),
    rows=st.lists(sides, min_size=1, max_size=3),
    width=st.integers(1, 40),
    out=st.integers(1, 40),
    biased=st.booleans(),
    strided=st.booleans(),
)
def test_both_equal_pytorch(
    seed: int, rows: list[int], width: int, out: int, biased: bool, strided: bool
) -> None:
    x, weight, bias = operands(seed, tuple(rows), width, out)
    if strided:
        x, weight = x.transpose(0, -1).contiguous().transpose(0, -1), weight.T.contiguous().T
    own = bias if biased else None
    with torch.no_grad():
        plain = F.linear(x, weight, own)
        found, curved = fast_linear(x, weight, own), fast_linear_gelu(x, weight, own)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(curved, F.gelu(plain), rtol=1e-5, atol=2e-5)


def test_gradients_are_pytorchs() -> None:
    x, weight, bias = operands(0, (64,), 32, 48)
    layer = nn.Linear(32, 48)
    layer.load_state_dict({"weight": weight, "bias": bias})
    plain = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    with FastLinears():
        found = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_within_the_mode_modules_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = nn.Sequential(nn.Linear(32, 48), nn.ReLU()), []
    x = operands(0, (64,), 32, 48)[0]

    def counted(*operands: Tensor | None) -> bool:
        calls.append(serves(*operands))
        return calls[-1]

    monkeypatch.setattr("possam.model.ops.fast_linear.serves", counted)
    with torch.no_grad():
        plain = layer(x)
        assert not calls
        with FastLinears():
            torch.testing.assert_close(layer(x), plain, rtol=1e-5, atol=1e-5)
    assert calls == [True]


def test_where_it_does_not_serve() -> None:
    x, weight, bias = operands(0, (64,), 32, 48)
    with torch.no_grad():
        assert serves(x, weight, bias) and serves(x, weight, None)
        assert not serves(x.bfloat16(), weight, bias)
        assert not serves(x, weight.double(), bias)
        assert not serves(x.to("meta"), weight, bias)
        with torch.autocast("cpu", torch.bfloat16):
            assert not serves(x, weight, bias)
        with torch.backends.mkldnn.flags(enabled=False):
            assert not serves(x, weight, bias)
    assert serves(x, weight, bias), "nothing here wants a gradient"
    assert not serves(x, weight.requires_grad_(), bias)
    with torch.inference_mode():
        assert serves(x, weight, bias)
