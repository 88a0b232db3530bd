"""From evaluation files of several seeds to a table."""

import csv
from pathlib import Path

import pytest

from possam.evaluation.statistics import bootstrap_intervals
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.table import make_table
from tests.support.small_study import write_evaluation, write_params


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """One run with the seeds 5 and 2, and a table of its mIoU; results lie in ``tmp_path``."""
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return Project("smoke")


def test_a_cell_is_the_mean_over_seeds(project: Project) -> None:
    tables = [write_evaluation(project, seed, variant="geometric") for seed in (5, 2)]
    make_table(project, "table1")
    with open("results/smoke/table1.csv", encoding="utf-8") as stream:
        (row,) = csv.DictReader(stream)
    first, second = (float(table.metrics()["miou"][0]) for table in tables)
    assert row["miou"] == f"{(first + second) / 2:.4f}"
    assert row["miou_std"] == f"{abs(first - second) / 2**0.5:.4f}"
    settings = project.scale.evaluation
    low, high = bootstrap_intervals(*tables, bootstrap=settings.bootstrap)["miou"]
    assert (row["miou_low"], row["miou_high"]) == (f"{low:.4f}", f"{high:.4f}")


def test_a_missing_seed_or_variant_is_reported_with_the_commands(project: Project) -> None:
    write_evaluation(project, 5, variant="geometric")
    with pytest.raises(InputError, match=r"--seed 5 .*; possam evaluate full test --seed 2 "):
        make_table(project, "table1")
    write_evaluation(project, 2, variant="default")
    with pytest.raises(InputError, match=r"\(trained, geometric\): no evaluation"):
        make_table(project, "table1")
    assert not Path("results/smoke/table1.csv").exists()
