"""From evaluation files of several seeds to a table."""

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from possam.errors import InputError
from possam.evaluation.semantic import SemanticCounts
from possam.evaluation.statistics import ImageStatistics, bootstrap_intervals
from possam.evaluation.summary import write_variants
from possam.layout import Layout
from possam.params import Project
from possam.stages.table import make_table

PARAMS = Path(__file__).resolve().parents[2] / "params"
TABLE = {
    "title": "Table",
    "published": "small.csv",
    "groups": {"g": "Direction"},
    "columns": [{"key": "miou", "group": "g", "metric": "miou", "title": "mIoU"}],
    "rows": [
        {
            "name": "Ours",
            "cells": {"g": {"run": "full", "benchmark": "test", "variant": "geometric"}},
        }
    ],
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """One run with the seeds 5 and 2, and a table of its mIoU; results lie in ``tmp_path``."""
    folder = Path(shutil.copytree(PARAMS, tmp_path / "params"))
    files = {
        "runs": {"full": {"sam": "b", "train": "coco"}},
        "benchmarks": {"test": {"dataset": "coco", "split": "val", "metrics": ["semantic"]}},
        "tables": {"table1": TABLE},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "published" / "small.csv").write_text("method,venue,miou\nOurs,,41.5\n")
    scale = folder / "scales" / "smoke.yaml"
    scale.write_text(scale.read_text().replace("seeds: [0]", "seeds: [5, 2]"))
    monkeypatch.chdir(tmp_path)
    return Project("smoke")


def write_evaluation(project: Project, seed: int, *, variant: str) -> ImageStatistics:
    rng = np.random.default_rng(seed)
    hit = rng.integers(0, 20, (15, 3))
    counts = SemanticCounts(hit, hit + 3, hit + rng.integers(5, 30, hit.shape))
    flags = (True, False, True)
    table = ImageStatistics(tuple(range(15)), flags, flags, semantic=counts)
    part: dict[str, Any] = {
        "metrics": {name: float(value[0]) for name, value in table.metrics().items()},
        "intervals": {},
        "per_class": [{"thing": flag, "seen": flag} for flag in flags],
        "protocol": {},
        "check": None,
    }
    where = {"run": "full", "seed": seed, "benchmark": "test", "condition": "trained"}
    result = {**where, "scale": project.name, "variants": {variant: part}}
    write_variants(Layout(project).evaluation(**where), result, {variant: table})
    return table


def test_a_cell_is_the_mean_over_seeds(project: Project) -> None:
    tables = [write_evaluation(project, seed, variant="geometric") for seed in (5, 2)]
    make_table(project, "table1")
    with open("results/smoke/table1.csv", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    first, second = (float(table.metrics()["miou"][0]) for table in tables)
    assert row["miou"] == f"{(first + second) / 2:.4f}"
    assert row["miou_std"] == f"{abs(first - second) / 2**0.5:.4f}"
    settings = project.scale.evaluation
    low, high = bootstrap_intervals(
        *tables,
        samples=settings.bootstrap_samples,
        seed=settings.bootstrap_seed,
        confidence=settings.confidence,
    )["miou"]
    assert (row["miou_low"], row["miou_high"]) == (f"{low:.4f}", f"{high:.4f}")


def test_a_missing_seed_or_variant_is_told_with_the_commands(project: Project) -> None:
    write_evaluation(project, 5, variant="geometric")
    with pytest.raises(InputError, match=r"--seed 5 .*; possam evaluate full test --seed 2 "):
        make_table(project, "table1")
    write_evaluation(project, 2, variant="default")
    with pytest.raises(InputError, match=r"\(trained, geometric\): no evaluation"):
        make_table(project, "table1")
    assert not Path("results/smoke/table1.csv").exists()
