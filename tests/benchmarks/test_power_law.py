"""Fitted exponents against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.power_law import fit


def test_slope_error_and_residual_by_hand() -> None:
    # Logarithms to base 2: x = 0, 1, 2 and y = 0, 1, 3. Slope 3/2, intercept -1/6, residuals
    # 1/6, -1/3, 1/6: their squares sum to 1/6, with one degree of freedom; sum of (x - 1)^2 is 2.
    law = fit([1, 2, 4], [1.0, 2.0, 8.0])
    assert law.exponent == pytest.approx(1.5)
    assert law.factor == pytest.approx(2 ** (-1 / 6))
    assert law.residual == pytest.approx(math.log(2) / math.sqrt(6))
    assert law.error == pytest.approx(math.sqrt(1 / 12))
    assert law.worst == pytest.approx(1 - 2 ** (-1 / 3)), "the middle point lies below the line"
    assert law.local == pytest.approx((1, 2))
    assert not law.holds


@given(
    exponent=st.floats(-3, 5),
    factor=st.floats(1e-3, 1e3),
    sizes=st.lists(st.integers(1, 10_000), min_size=3, max_size=7, unique=True).map(sorted),
)
def test_a_power_law_is_found(exponent: float, factor: float, sizes: list[int]) -> None:
    law = fit(sizes, [factor * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-6)
    assert law.factor == pytest.approx(factor, rel=1e-4)
    assert law.residual < 1e-6 and law.holds


def test_a_constant_part_is_no_power_law() -> None:
    law = fit([1, 10, 100, 1000], [10 + size for size in (1, 10, 100, 1000)])
    assert not law.holds
    assert law.local[0] < 0.3 and law.local[-1] > 0.9, "from flat to linear"


def test_a_point_nine_percent_off_still_counts() -> None:
    # Alternating signs leave the slope of four points nearly as it is.
    assert fit([1, 2, 4, 8], [1.04, 2 / 1.04, 4 / 1.04, 8 * 1.04]).holds
    assert not fit([1, 2, 4, 8], [1.2, 2 / 1.2, 4 / 1.2, 8 * 1.2]).holds


@pytest.mark.parametrize(
    ("sizes", "costs", "text"),
    [
        ([1, 2], [1.0, 2.0], "at least 3"),
        ([1, 2, 3], [1.0, 2.0], "2 costs of 3 sizes"),
        ([1, 3, 2], [1.0, 2.0, 3.0], "ascend"),
        ([1, 2, 2], [1.0, 2.0, 3.0], "ascend"),
        ([1, 2, 3], [1.0, 0.0, 3.0], "above zero"),
        ([0, 2, 3], [1.0, 1.0, 3.0], "above zero"),
    ],
)
def test_what_cannot_be_fitted(sizes: list[int], costs: list[float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        fit(sizes, costs)
