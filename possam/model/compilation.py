"""The network compiled by ``torch.compile``, and its kernels launched as CUDA graphs."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from possam.model.options import Compilation
from possam.model.segmenter import RawPrediction, Segmenter
from possam.runtime.errors import InputError, PossamError

_SIZES = 1024
"""How many sizes of images may have a graph; PyTorch's own limit is 8."""


def compiled(segmenter: Segmenter, compilation: Compilation) -> Segmenter:
    """``segmenter`` as ``compilation`` says, over the same weights.

    ``inductor``: towers and decoders run as fused kernels. ``cuda_graphs``: the same, and each
    graph's kernels are launched at once; only on CUDA. Results differ by rounding. Every size of
    images is compiled at its first use, which takes minutes: it pays where many images share few
    sizes, and not on a CPU, where the uncompiled network is faster. Warm up before you measure.

    Raises:
        InputError: ``cuda_graphs`` for a model that is not on CUDA.
    """
    if compilation == "none":
        return segmenter
    return CompiledSegmenter(segmenter, compilation)


class CompiledSegmenter(Segmenter):
    """What :func:`compiled` returns; only for use without gradients."""

    def __init__(self, segmenter: Segmenter, compilation: Literal["inductor", "cuda_graphs"]):
        """See :func:`compiled`."""
        nn.Module.__init__(self)
        self.features, self.possam = segmenter.features, segmenter.possam
        self.train(segmenter.training)
        self.compilation: Compilation = compilation
        device = next(segmenter.parameters()).device
        if compilation == "cuda_graphs" and device.type != "cuda":
            raise InputError(
                "evaluation.compile: cuda_graphs needs a model on CUDA, and this one is on "
                f"{device}; choose inductor or none, or a CUDA device"
            )
        # Weights that are constants are packed for oneDNN, once.
        self._inductor = {"freezing": device.type == "cpu"}
        self._run: Callable[[Tensor], RawPrediction] = torch.compile(
            segmenter.forward,
            dynamic=False,
            options={"triton.cudagraphs": compilation == "cuda_graphs"},
        )

    @torch.no_grad()
    def forward(self, images: Tensor) -> RawPrediction:
        """As :meth:`Segmenter.forward`; with CUDA graphs, what it returned before is overwritten.

        Raises:
            PossamError: the compiler (C++, Triton) failed, or there are too many sizes.
        """
        torch.compiler.cudagraph_mark_step_begin()
        limits: dict[str, Any] = {
            "recompile_limit": _SIZES,
            "accumulated_recompile_limit": _SIZES,
            # Otherwise it would go on uncompiled, with a line in the log.
            "fail_on_recompile_limit_hit": True,
        }
        try:
            with torch._dynamo.config.patch(limits), torch._inductor.config.patch(self._inductor):
                return self._run(images)
        except (
            torch._dynamo.exc.TorchDynamoException,
            torch._dynamo.exc.FailOnRecompileLimitHit,
        ) as error:
            reason = str(error).strip().partition("\n")[0]
            raise PossamError(
                f"evaluation.compile: {self.compilation}: torch.compile failed on images of "
                f"{tuple(images.shape[-2:])}: {reason}; choose none"
            ) from error
