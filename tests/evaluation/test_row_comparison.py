"""Comparisons of rows: paired intervals by hand and in the limit, rank agreement."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from possam.evaluation.comparison import paired_differences, rank_agreement
from possam.evaluation.options import Bootstrap
from possam.evaluation.panoptic import PanopticCounts
from possam.evaluation.statistics import ImageStatistics, Resampled, bootstrap_intervals, resample
from possam.runtime.errors import InputError

IMAGES = 80


def system(found: np.ndarray, *, of: int = 10) -> ImageStatistics:
    """One class, one row an image: ``found`` of ``of`` segments are matched with an IoU of 0.8."""
    counts = PanopticCounts(found, np.zeros_like(found), of - found, found * 0.8)
    return ImageStatistics(tuple(range(len(found))), (True,), (True,), panoptic=counts)


def draw(seed: int, *, chance: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.binomial(10, chance, (IMAGES, 1))


def test_a_row_does_not_differ_from_itself() -> None:
    row = resample(system(draw(0)), bootstrap=Bootstrap(50, 0, 0.95))
    same = paired_differences(row, row, confidence=0.95)
    assert list(same) == list(row.samples), "another process writes the same file"
    assert set(same) == {"pq", "pq_things", "pq_stuff", "pq_seen", "pq_unseen", "sq", "rq"}
    assert all((same[k].value, same[k].low, same[k].high) == (0, 0, 0) for k in ("pq", "rq"))


def test_swapping_the_rows_swaps_the_sign() -> None:
    first, second = (resample(system(draw(k)), bootstrap=Bootstrap(200, 0, 0.95)) for k in (1, 2))
    forward = paired_differences(second, first, confidence=0.95)["pq"]
    backward = paired_differences(first, second, confidence=0.95)["pq"]
    assert forward.value == pytest.approx(second.points["pq"] - first.points["pq"])
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_pairing_removes_what_images_share() -> None:
    """Hard and easy images spread both systems alike; their difference is known far better."""
    rng = np.random.default_rng(6)
    found = rng.binomial(10, rng.uniform(0.1, 0.9, (IMAGES, 1)))
    weak, strong = (system(np.minimum(found + more, 10)) for more in (0, 1))
    rows = [resample(table, bootstrap=Bootstrap(500, 0, 0.95)) for table in (strong, weak)]
    paired = paired_differences(*rows, confidence=0.95)["pq"]
    single = bootstrap_intervals(weak, bootstrap=Bootstrap(500, 0, 0.95))["pq"]
    assert paired.low > 0
    assert paired.high - paired.low < (single[1] - single[0]) / 3


def known(values: list[float], spread: float = 0.0) -> list[Resampled]:
    """Rows with these PQs; in half of the resamples moved by ``spread`` times their place."""
    half = np.repeat([0.0, 1.0], 50)
    return [
        Resampled({"pq": value}, {"pq": value + spread * place * half})
        for place, value in enumerate(values)
    ]


def test_agreement_by_hand() -> None:
    """Of six pairs one is in the other order: (5 - 1) / 6."""
    found = rank_agreement([1, 2, 3, 4], known([10, 30, 20, 40]), "pq", confidence=0.95)
    assert found is not None
    assert found.tau == pytest.approx(4 / 6) and found.rows == 4
    assert (found.low, found.high) == pytest.approx((4 / 6, 4 / 6))


def test_agreement_interval_shows_orders_that_resamples_turn_round() -> None:
    # In half of the resamples the falling values 3, 2, 1 become 3, 12, 21.
    found = rank_agreement([1, 2, 3], known([3, 2, 1], spread=10), "pq", confidence=0.9)
    assert found is not None and (found.tau, found.low, found.high) == (-1.0, -1.0, 1.0)


@given(st.lists(st.integers(0, 50), min_size=3, max_size=6, unique=True), st.randoms())
def test_agreement_is_scipys_and_symmetric(published: list[int], random: object) -> None:
    values = [float((7 * v + 3) % 53) for v in published]
    found = rank_agreement([float(v) for v in published], known(values), "pq", confidence=0.95)
    assert found is not None
    assert found.tau == pytest.approx(kendalltau(values, published).statistic)
    turned = rank_agreement([-float(v) for v in published], known(values), "pq", confidence=0.95)
    assert turned is not None and turned.tau == pytest.approx(-found.tau)


def test_agreement_needs_an_order() -> None:
    assert rank_agreement([1, 2], known([1, 2]), "pq", confidence=0.95) is None
    assert rank_agreement([1, 2, 3], known([5, 5, 5]), "pq", confidence=0.95) is None
    assert rank_agreement([2, 2, 2], known([1, 2, 3]), "pq", confidence=0.95) is None
    with pytest.raises(InputError, match="2 published values, 3 rows"):
        rank_agreement([1, 2], known([1, 2, 3]), "pq", confidence=0.95)
