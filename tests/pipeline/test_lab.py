"""The scale of one GPU: what it shares with the paper's, what it costs, where its jobs run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import make_plan, resolve_targets, wall_hours
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Only the parameters and the workflow: no data, no results."""
    for name in ("params", "workflow", "profiles"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    (tmp_path / "gpu").symlink_to("profiles/gpu")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_it_is_the_paper_but_for_what_its_file_says() -> None:
    lab, paper = (Project(name).scale.model_dump() for name in ("lab", "paper"))
    assert {key for key in paper if lab[key] != paper[key]} == {
        *("title", "data_of", "threads", "training", "inference", "test_resolutions")
    }
    for key, changed in (
        ("training", {"iterations", "micro_batch", "milestones", "augmentation", "workers"}),
        ("inference", {"resolution"}),
    ):
        assert {k for k in paper[key] if lab[key][k] != paper[key][k]} == changed


def test_table_1_is_planned_within_36_hours_on_one_gpu(here: Path) -> None:
    graph = Graph()
    plan = make_plan(graph, "lab", ["table1"])
    assert {step.units for step in plan.steps if step.job.stage == "train"} == {1}
    # By hand: 40,000 steps of 16 crops of a quarter of the area, each of four models on two sets.
    operations = 2 * (4 * 1.44 + 1.36 + 3.43 + 6.26 + 4 * 3 * 0.86) / 4
    assert plan.unit_hours("train") == pytest.approx(640_000 * operations / 125 / 3600)
    assert plan.unit_hours() < wall_hours(plan.steps, capacity=1) < 36


def test_it_uses_the_paper_s_data_and_keeps_its_own_results(here: Path) -> None:
    graph = Graph()
    jobs = graph.walk(resolve_targets(graph.project("lab"), ["table1"]))
    scales = {job.stage: job.scale for job in jobs}
    assert scales == {
        **dict.fromkeys(("download", "convert"), "paper"),
        **dict.fromkeys(("train", "training_free", "evaluate", "table"), "lab"),
    }


def test_without_slurm_its_jobs_take_the_gpu_one_at_a_time(here: Path) -> None:
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "--profile", "gpu"]
    done = subprocess.run(
        [*command, "--quiet", "host", "--", "results/lab/table1.csv"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown[-2000:]
    commands = [line for line in shown.splitlines() if line.startswith("Shell command: ")]
    on_gpu = [line for line in commands if " --device cuda" in line]
    assert len(on_gpu) == 22 and all("train" in line or "evaluate" in line for line in on_gpu)
    assert shown.count("local_gpus=1") == 22
    assert not any(" --device cpu" in line for line in commands)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"based_on": "lab"}, "based_on: unknown scale 'lab'"),
        (
            {"based_on": "papr"},
            "based_on: unknown scale 'papr'; valid choices: calibration, mini, paper, smoke",
        ),
        ({"data_of": "papr"}, "data_of: unknown scale 'papr'"),
    ],
)
def test_wrong_names_of_scales_are_told(here: Path, changes: dict[str, str], message: str) -> None:
    edit(here / "params/scales/lab.yaml", **changes)
    with pytest.raises(InputError, match=message):
        Project("lab")


def test_a_scale_is_based_on_a_whole_one(here: Path) -> None:
    edit(here / "params/scales/smoke.yaml", based_on="lab")
    with pytest.raises(InputError, match="lab is itself based on another scale"):
        Project("smoke")
