"""Floating-point operations: the most that a device does per second, and those of one call."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import finish
from possam.model.ops.fast_linear import fast_linear

_REPEATS = 5


def matmul_ceiling(device: str, dtype: torch.dtype, *, side: int) -> float:
    """Operations per second of the fastest of several products of two random ``side`` x ``side``
    matrices, by PyTorch's own product and by that of this project's linear layers.
    """
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    with torch.no_grad():
        for product in (torch.matmul, fast_linear) * (1 + _REPEATS):
            finish(device)
            began = time.perf_counter()
            product(left, right)
            finish(device)
            best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def count_flops(call: Callable[[], Any]) -> float:
    """Operations of products, convolutions and attention in one call (a multiplication and an
    addition are two).
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())
