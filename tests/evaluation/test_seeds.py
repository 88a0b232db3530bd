"""Several evaluations that differ by the seed: mean, standard deviation, interval of the mean."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from possam.evaluation.comparison import average_seeds
from possam.evaluation.options import Bootstrap
from possam.evaluation.semantic import SemanticCounts
from possam.evaluation.statistics import (
    ImageStatistics,
    bootstrap_intervals,
    frames_per_second,
)
from possam.evaluation.summary import SECONDS, write_variants
from possam.runtime.errors import InputError

THINGS, SEEN = (True, False, False), (True, True, False)
BOOTSTRAP = Bootstrap(samples=80, seed=5, confidence=0.9)


def write(folder: Path, seed: int, images: int = 20) -> ImageStatistics:
    """An evaluation with only mIoU, in two variants, of which only one is averaged."""
    rng = np.random.default_rng(seed)
    target = rng.integers(20, 40, (images, 3))
    hit = rng.integers(0, 20, (images, 3))
    counts = SemanticCounts(hit, hit + rng.integers(0, 9, hit.shape), target)
    table = ImageStatistics(tuple(range(images)), THINGS, SEEN, semantic=counts)
    metrics: dict[str, Any] = {name: float(v[0]) for name, v in table.metrics().items()}
    flags = [{"thing": t, "seen": s} for t, s in zip(THINGS, SEEN, strict=True)]
    part = {"metrics": {**metrics, "pq_unseen": None}, "per_class": flags, "protocol": {}}
    other = {"metrics": {"miou": 0.0}, "per_class": flags}
    variants = {"default": other, "geometric": part}
    write_variants(folder, {"variants": variants}, {"default": table, "geometric": table})
    return table


def test_mean_deviation_and_interval(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed{seed}" for seed in range(3)]
    tables = [write(folder, seed) for seed, folder in enumerate(folders)]
    found = average_seeds(folders, "geometric", bootstrap=BOOTSTRAP)
    a, b, c = (float(table.metrics()["miou"][0]) for table in tables)
    mean = (a + b + c) / 3
    assert found.mean["miou"] == pytest.approx(mean)
    spread = ((a - mean) ** 2 + (b - mean) ** 2 + (c - mean) ** 2) / 2
    assert found.std["miou"] == pytest.approx(spread**0.5) and spread > 0
    assert found.mean["pq_unseen"] is None and found.std["pq_unseen"] is None
    expected = bootstrap_intervals(*tables, bootstrap=BOOTSTRAP)
    assert found.intervals == {name: list(bounds) for name, bounds in expected.items()}
    low, high = expected["miou"]
    assert low < mean < high


def test_seeds_on_different_images_are_refused(tmp_path: Path) -> None:
    folders = [tmp_path / "seed0", tmp_path / "seed1"]
    write(folders[0], 0)
    write(folders[1], 1, images=19)
    with pytest.raises(InputError, match=r"\(20 and 19\)"):
        average_seeds(folders, "geometric", bootstrap=BOOTSTRAP)
    with pytest.raises(InputError, match="seed2"):
        average_seeds([*folders, tmp_path / "seed2"], "geometric", bootstrap=BOOTSTRAP)


def test_the_rate_of_timed_models_is_the_mean_over_seeds(tmp_path: Path) -> None:
    seconds = [[0.5, 0.25, 0.25], [1.0, 0.5, 0.5]]  # 3 and 1.5 images a second
    folders = []
    for seed, each in enumerate(seconds):
        metrics = {"fps": 3 / sum(each), "total_m": 2.5}
        protocol = {"fps": "one at a time", SECONDS: each}
        part = {"metrics": metrics, "per_class": [], "protocol": protocol}
        folders.append(tmp_path / f"seed{seed}")
        write_variants(folders[-1], {"variants": {"default": part}}, {})
    found = average_seeds(folders, "default", bootstrap=BOOTSTRAP)
    assert found.mean == {"fps": 2.25, "total_m": 2.5}
    assert found.std == {"fps": pytest.approx(1.5 / 2**0.5), "total_m": 0.0}
    low, high = found.intervals["fps"]
    assert low < 2.25 < high and found.intervals["total_m"] == [2.5, 2.5]
    # Each resample takes the same images of both, of which one is half as fast as the other.
    _, (one_low, one_high) = frames_per_second(np.array(seconds[0]), bootstrap=BOOTSTRAP)
    assert (high - low) == pytest.approx(0.75 * (one_high - one_low))


def test_seconds_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="different numbers"):
        frames_per_second(np.ones(3), np.ones(2), bootstrap=BOOTSTRAP)
