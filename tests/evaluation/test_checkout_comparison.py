"""Two versions of the same trainings: intervals by hand, and how often they hold the truth."""

from collections.abc import Sequence

import numpy as np
import pytest

from possam.evaluation.comparison import Change, compare_trainings, mean_change
from possam.evaluation.options import Bootstrap
from possam.evaluation.semantic import SemanticCounts
from possam.evaluation.statistics import ImageStatistics
from possam.runtime.errors import InputError

NOTHING = (0.0, 0.0, 0.0)
NORMAL = 1.959964  # 97.5 % quantile


def result(
    by_seed: Sequence[float],
    resampled: Sequence[float] = NOTHING,
    *,
    run: str = "full",
    on: str = "coco",
) -> Change:
    change = float(np.mean(by_seed))
    return Change(
        run=run,
        benchmark=on,
        before=50.0,
        after=50.0 + change,
        by_seed=np.array(by_seed),
        resampled=np.array(resampled),
    )


def half_width(*results: Change) -> float:
    found = mean_change(results, confidence=0.95)
    assert found.value - found.low == pytest.approx(found.high - found.value)
    return (found.high - found.low) / 2


def test_seeds_alone_are_students_t() -> None:
    found = mean_change([result([1.0, 2.0, 3.0])], confidence=0.95)
    assert found.value == 2.0
    assert found.high - 2.0 == pytest.approx(4.302653 * (1 / 3) ** 0.5)  # variance 1, 2 degrees


def test_images_alone_are_normal() -> None:
    assert half_width(result([1.0], [0.0, 2.0])) == pytest.approx(NORMAL * 2**0.5)  # variance 2


def test_both_parts_are_added_as_variances() -> None:
    seeds, images = 4.302653 * (1 / 3) ** 0.5, NORMAL * 2**0.5
    both = half_width(result([1.0, 2.0, 3.0], [0.0, 2.0]))
    assert both == pytest.approx((seeds**2 + images**2) ** 0.5)


def test_the_mean_of_two_trainings_has_welchs_degrees_of_freedom() -> None:
    # Variances of the means 1/3 and 1/3 (2 degrees each): 4 degrees together; and 1 and 0: 2.
    same = half_width(result([1.0, 2.0, 3.0]), result([0.0, 1.0, 2.0], run="other"))
    assert same == pytest.approx(2.776445 * (2 / 3) ** 0.5 / 2)
    one = half_width(result([1.0, 2.0, 3.0]), result([1.0, 1.0, 1.0], run="other"))
    assert one == pytest.approx(4.302653 * (1 / 3) ** 0.5 / 2)


def test_results_of_one_run_share_its_trainings() -> None:
    up, down = [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]
    assert half_width(result(up), result(down, on="ade20k")) == 0.0
    alone = half_width(result(up))
    assert half_width(result(up), result(up, on="ade20k")) == pytest.approx(alone)
    assert half_width(result(up), result(up, run="other")) < alone


def test_benchmarks_are_independent_and_runs_on_one_share_its_images() -> None:
    up, down = [0.0, 2.0], [2.0, 0.0]
    assert half_width(result([1.0], up), result([1.0], down)) == 0.0
    apart = half_width(result([1.0], up), result([1.0], down, on="ade20k"))
    assert apart == pytest.approx(NORMAL * (2 + 2) ** 0.5 / 2)
    together = half_width(result([1.0], up), result([1.0], up))
    assert together == pytest.approx(NORMAL * 2**0.5)


def test_one_of_several_without_a_second_seed_leaves_the_images_part() -> None:
    found = half_width(result([1.0, 2.0], [0.0, 2.0]), result([1.0], NOTHING[:2]))
    assert found == pytest.approx(NORMAL * 2**0.5 / 2)


def test_a_resample_without_a_value_is_left_out() -> None:
    nan = float("nan")
    assert half_width(result([1.0], [0.0, nan, 2.0])) == pytest.approx(NORMAL * 2**0.5)


def test_the_interval_of_the_mean_holds_no_change_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    held = 0
    for _ in range(1000):
        spread = (0.5, 1.0, 2.0, 1.0)
        found = mean_change(
            [result(rng.normal(0.0, scale, 3), run=f"{n}") for n, scale in enumerate(spread)],
            confidence=0.95,
        )
        held += found.low <= 0.0 <= found.high
    assert 930 <= held <= 985


def statistics(seed: int, images: int = 20) -> ImageStatistics:
    rng = np.random.default_rng(seed)
    hit, target = rng.integers(0, 20, (images, 3)), rng.integers(20, 40, (images, 3))
    counts = SemanticCounts(hit, hit + rng.integers(0, 9, hit.shape), target)
    flags = (True, False, False)
    return ImageStatistics(tuple(range(images)), flags, flags, semantic=counts)


BOOTSTRAP = Bootstrap(samples=200, seed=3, confidence=0.95)
NAMES = {"run": "full", "benchmark": "coco"}


def test_differences_are_paired_by_seed_and_by_image() -> None:
    before = {4: statistics(0), 1: statistics(1)}
    after = {1: statistics(2), 4: statistics(3)}
    found = compare_trainings(before, after, **NAMES, bootstrap=BOOTSTRAP)["miou"]
    value = {n: float(statistics(n).metrics()["miou"][0]) for n in range(4)}
    assert found.before == pytest.approx((value[0] + value[1]) / 2)
    assert found.after == pytest.approx((value[2] + value[3]) / 2)
    assert found.by_seed == pytest.approx([value[2] - value[1], value[3] - value[0]])
    drawn = {n: statistics(n).resampled(BOOTSTRAP)["miou"] for n in range(4)}
    expected = (drawn[2] + drawn[3] - drawn[0] - drawn[1]) / 2
    np.testing.assert_allclose(found.resampled, expected)


def test_the_same_version_twice_has_not_changed() -> None:
    tables = {0: statistics(0), 1: statistics(1)}
    found = compare_trainings(tables, tables, **NAMES, bootstrap=BOOTSTRAP)
    assert set(found) == {"miou", "miou_union"}
    assert mean_change(list(found.values()), confidence=0.95).high == 0.0


def test_other_seeds_or_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"seeds \[0\] before, \[1\] after"):
        compare_trainings({0: statistics(0)}, {1: statistics(0)}, **NAMES, bootstrap=BOOTSTRAP)
    fewer = {0: statistics(0, images=19)}
    with pytest.raises(InputError, match="different images"):
        compare_trainings({0: statistics(0)}, fewer, **NAMES, bootstrap=BOOTSTRAP)
