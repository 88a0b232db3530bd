"""Linear layers in float32 on a CPU by oneDNN, which PyTorch links and uses for convolutions.

PyTorch's own float32 products go through MKL, which uses only half the vector width (AVX2) of
processors that Intel did not make: on an AMD EPYC with AVX-512 oneDNN is 2.2 times faster. Results
differ by the order of sums, as between any two machines. oneDNN's operator has no derivative, so
nothing here is for training.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_ROWS = 16
"""From this number of rows on, oneDNN is worth its call."""


def serves(*operands: Tensor | None) -> bool:
    """Whether oneDNN can replace ``F.linear``: float32 on a CPU, no gradients, no autocast."""
    return (
        not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and all(
            one is None
            or (
                one.dtype is torch.float32
                and one.device.type == "cpu"
                and one.layout is torch.strided
                and not (torch.is_grad_enabled() and one.requires_grad)
            )
            for one in operands
        )
    )


def fast_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: (..., C) with (D, C) and (D,) -> (..., D), by oneDNN where it can."""
    if x.numel() >= _ROWS * x.shape[-1] and serves(x, weight, bias):
        return _onednn(x, weight, bias, "none")
    return F.linear(x, weight, bias)


def fast_linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.gelu(F.linear(...))``, the exact GELU, in one pass where oneDNN can."""
    if x.numel() >= _ROWS * x.shape[-1] and serves(x, weight, bias):
        return _onednn(x, weight, bias, "gelu")
    return F.gelu(F.linear(x, weight, bias))


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(
        x, weight, bias, activation, [], "none" if activation == "gelu" else ""
    )
    return out


class FastLinears(TorchFunctionMode):
    """A context in which every ``F.linear``, in whatever module, is :func:`fast_linear`."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.linear:
            return fast_linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
