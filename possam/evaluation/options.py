"""Choices of evaluation."""

from typing import Annotated

from pydantic import Field

from possam.model.options import Compilation
from possam.runtime.options import Count, Options, Positive


class EvaluationOptions(Options):
    """Bootstrap settings and the optional cross-check against panopticapi.

    ``compile``: how the network runs (:func:`possam.model.compilation.compiled`).
    """

    bootstrap_samples: Positive
    bootstrap_seed: Count
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)]
    check_panopticapi: bool
    batch_size: Positive
    compile: Compilation
