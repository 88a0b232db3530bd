"""A network compiled by ``torch.compile``, and its kernels launched as CUDA graphs."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from possam.model.options import Compilation
from possam.runtime.errors import InputError, PossamError

_SIZES = 1024
"""How many sizes of images may have a graph; PyTorch's own limit is 8."""

Network = TypeVar("Network", bound=nn.Module)


def compiled(network: Network, compilation: Compilation) -> Network:
    """``network`` compiled as ``compilation`` says, with the same weights; computes no gradients.

    ``inductor``: towers and decoders run as fused kernels. ``cuda_graphs``: the kernels are also
    launched all at once, only on CUDA, and each call overwrites what the last one returned.
    Results differ by rounding. Every size of images is compiled at its first use, which takes
    minutes. This pays where many images share few sizes, and not on a CPU, where the uncompiled
    network is faster. Warm up before you measure.

    Raises:
        InputError: ``cuda_graphs`` for a network that is not on CUDA.
        PossamError: (when called) the compiler (C++, Triton) failed, or there are too many sizes.
    """
    if compilation == "none":
        return network
    device = next(network.parameters()).device
    if compilation == "cuda_graphs" and device.type != "cuda":
        raise InputError(
            "evaluation.compile: cuda_graphs needs a model on CUDA, and this one is on "
            f"{device}; choose inductor or none, or a CUDA device"
        )
    run = torch.compile(
        network.forward,
        dynamic=False,
        options={"triton.cudagraphs": compilation == "cuda_graphs"},
    )
    limits: dict[str, Any] = {
        "recompile_limit": _SIZES,
        "accumulated_recompile_limit": _SIZES,
        # Otherwise PyTorch would go on uncompiled, with a line in the log.
        "fail_on_recompile_limit_hit": True,
    }
    # Freezing makes weights constants, which are packed for oneDNN only once.
    inductor = {"freezing": device.type == "cpu"}

    @torch.no_grad()
    def forward(images: torch.Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        try:
            with torch._dynamo.config.patch(limits), torch._inductor.config.patch(inductor):
                return run(images)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            reason = str(error).strip().partition("\n")[0]
            raise PossamError(
                f"evaluation.compile: {compilation}: torch.compile failed on images of "
                f"{tuple(images.shape[-2:])}: {reason}; choose none"
            ) from error

    # A shallow copy shares parts and weights; its own attribute hides the class's method.
    fast = copy.copy(network)
    vars(fast)["forward"] = forward
    return fast
