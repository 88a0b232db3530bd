"""Sums of samples: their derivatives, and samples kept or drawn again."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from possam.model import deformable
from possam.model.deformable import SampleSum


def _inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 4, 5, generator=draw, dtype=dtype)
    grids = 2.4 * torch.rand(3, 3, 6, 2, generator=draw, dtype=dtype) - 1.2
    weights = torch.rand(3, 3, 6, generator=draw, dtype=dtype)
    return maps.requires_grad_(), grids.requires_grad_(), weights.requires_grad_()


@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_derivatives(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deformable, "_KEPT_BYTES", kept)
    assert torch.autograd.gradcheck(SampleSum.apply, _inputs(torch.float64))


def test_samples_kept_or_drawn_again_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def sample(maps: Tensor, grids: Tensor) -> Tensor:
        drawn.append(F.grid_sample(maps, grids, align_corners=False))
        return drawn[-1]

    monkeypatch.setattr(deformable, "_sample", sample)
    size = 3 * 2 * 3 * 6 * 4  # G D P Q float32
    found, calls = [], []
    for kept in (size, size - 1):
        monkeypatch.setattr(deformable, "_KEPT_BYTES", kept)
        drawn.clear()
        inputs = _inputs(torch.float32)
        out = SampleSum.apply(*inputs)
        out.square().sum().backward()
        found.append([out, *(value.grad for value in inputs)])
        calls.append(len(drawn))
    assert calls[1] == 2 * calls[0]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
