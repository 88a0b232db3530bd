"""The trained part of a segmenter under bfloat16 autocast, for evaluations.

The plain network runs in float32. Autocast is what training runs it under, too: products in
bfloat16, softmax, norms and what is compared with text in float32.
"""

from typing import Any

import torch

from possam.model.options import Precision
from possam.model.segmenter import Segmenter


def with_decoders_in(precision: Precision, segmenter: Segmenter) -> Segmenter:
    """``segmenter`` itself, whose pixel decoder and mask decoder run in ``precision`` from now on.

    The towers keep their own precision.
    """
    if precision == "bf16":
        run = segmenter.possam.forward
        device = next(segmenter.parameters()).device.type

        def forward(*inputs: Any, **options: Any) -> Any:
            with torch.autocast(device, dtype=torch.bfloat16):
                return run(*inputs, **options)

        vars(segmenter.possam)["forward"] = forward  # hides the class's method
    return segmenter
