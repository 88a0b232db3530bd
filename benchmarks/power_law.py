"""Fitted exponents: how a cost grows with size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST = 3
"""With fewer points a line always fits, and its exponent has no standard error."""

TOLERANCE = 0.1
"""Largest relative distance of a point from a curve that still counts as a power law."""


@dataclass(frozen=True, kw_only=True)
class PowerLaw:
    """``cost = factor * size ** exponent``, by least squares of the logarithms.

    Attributes:
        error: standard error of the exponent.
        residual: standard deviation of the natural logarithms around the line, with n - 2 degrees
            of freedom (0.05: about 5 %).
        worst: the largest relative distance of a point from the line.
        local: exponents between neighbouring points, in the order of the sizes.
    """

    exponent: float
    error: float
    factor: float
    residual: float
    worst: float
    local: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether every point lies within :data:`TOLERANCE` of the line."""
        return self.worst <= TOLERANCE


def fit(sizes: Sequence[float], costs: Sequence[float]) -> PowerLaw:
    """Fit a power law.

    Raises:
        ValueError: fewer than three points, sizes that do not ascend, or values not above zero.
    """
    if len(sizes) < FEWEST or len(sizes) != len(costs):
        raise ValueError(f"{len(costs)} costs of {len(sizes)} sizes: at least {FEWEST} are needed")
    if min(*sizes, *costs) <= 0 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"sizes {sizes}, costs {costs}: above zero, and sizes that ascend")
    x = [math.log(size) for size in sizes]
    y = [math.log(cost) for cost in costs]
    centre, level = math.fsum(x) / len(x), math.fsum(y) / len(y)
    spread = math.fsum((a - centre) ** 2 for a in x)
    exponent = math.fsum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / spread
    intercept = level - exponent * centre
    off = [b - intercept - exponent * a for a, b in zip(x, y, strict=True)]
    variance = math.fsum(each**2 for each in off) / (len(off) - 2)
    return PowerLaw(
        exponent=exponent,
        error=math.sqrt(variance / spread),
        factor=math.exp(intercept),
        residual=math.sqrt(variance),
        worst=max(abs(math.expm1(each)) for each in off),
        local=tuple((d - b) / (c - a) for (a, b), (c, d) in pairwise(zip(x, y, strict=True))),
    )
