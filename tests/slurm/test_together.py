"""Trainings that share the towers: one job, found by the driver of each."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import ClusterWorkspace, edit
from tests.support.cluster import Cluster
from tests.whole.conftest import Workspace

pytestmark = pytest.mark.slurm

RUNS = ("whole", "lighter", "no_iou", "diverges")


def on_one_source(runs: dict[str, Any]) -> None:
    """Four runs that read the same crops; the last cannot be trained."""
    live = {"feature_cache": False, "iterations": 12, "milestones": [8]}
    shared = {"sam": "b", "train": "coco", "training": live}
    runs["whole"] = shared
    runs["lighter"] = {**shared, "loss": {"dice_weight": 1.0}}
    runs["no_iou"] = {**shared, "model": {"iou_head": False}}
    runs["diverges"] = {**shared, "training": {**live, "learning_rate": 1e30, "warmup": 0}}


def folder_of(workspace: Workspace, run: str) -> Path:
    return workspace.folder / f"results/smoke/runs/{run}/seed0"


def record(workspace: Workspace, run: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder_of(workspace, run) / "slurm/job.json").read_text())
    return content


@pytest.fixture(scope="module")
def alone(local: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Each run trained by itself, without SLURM."""
    folder = tmp_path_factory.mktemp("alone") / "project"
    shutil.copytree(local.folder, folder, symlinks=True)
    workspace = Workspace(folder)
    edit(folder / "params/runs.yaml", on_one_source)
    for run in RUNS[:3]:
        workspace.possam("train", run, "--scale", "smoke")
    return workspace


@pytest.fixture
def sharing(
    local: Workspace, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> ClusterWorkspace:
    folder = tmp_path_factory.mktemp("sharing") / "project"
    shutil.copytree(local.folder, folder, symlinks=True)
    workspace = ClusterWorkspace(folder, cluster)
    edit(folder / "params/runs.yaml", on_one_source)
    edit(
        folder / "params/slurm.yaml",
        lambda file: file["scales"]["smoke"]["train"].update(share_towers=True),
    )
    return workspace


def test_one_job_trains_what_the_targets_need(sharing: ClusterWorkspace, alone: Workspace) -> None:
    """Snakemake starts a driver for each; one that fails leaves the others' work whole."""
    targets = [f"results/smoke/runs/{run}/seed0/run.json" for run in RUNS]
    done = sharing.run("snakemake", "--profile", "slurm", *targets, check=False)
    assert done.returncode != 0
    logs = "".join(path.read_text() for path in (sharing.folder / "results/smoke/logs").iterdir())
    assert logs.count("submitted job") == 1 and "diverges seed0: step" in logs
    assert len({record(sharing, run)["job"] for run in RUNS}) == 1
    for run in RUNS[:3]:
        here, there = (
            json.loads((folder_of(where, run) / "run.json").read_text())
            for where in (alone, sharing)
        )
        assert here["weights_sha256"] == there["weights_sha256"]
        summary = json.loads((folder_of(sharing, run) / "training.json").read_text())
        assert summary["together"] == 4
    assert not (folder_of(sharing, "diverges") / "weights.safetensors").exists()
    listed = sharing.possam("jobs", "--scale", "smoke").stdout
    assert all(run in listed for run in RUNS)
    # nothing more to do for those that are finished
    done = sharing.run("snakemake", "--profile", "slurm", "-n", *targets[:3])
    assert "Nothing to be done" in done.stdout + done.stderr


def test_one_command_for_several_runs(sharing: ClusterWorkspace, alone: Workspace) -> None:
    """One command for two runs, beside a third that it does not wait for."""
    job = sharing.folder / "results/smoke/runs/whole/seed0/slurm/job.json"
    assert not job.exists()
    command = ("train", *RUNS[:2], "--scale", "smoke", "--launcher", "slurm", "--beside", "no_iou")
    sharing.possam(*command)
    submissions = [record(sharing, run)["submissions"] for run in RUNS[:3]]
    assert submissions[0][0]["job"] == submissions[1][0]["job"] == submissions[2][0]["job"]
    for run in RUNS[:2]:
        here, there = (
            json.loads((folder_of(where, run) / "run.json").read_text())
            for where in (alone, sharing)
        )
        assert here["weights_sha256"] == there["weights_sha256"]
    sharing.possam(*command)
    assert [record(sharing, run)["submissions"] for run in RUNS[:3]] == submissions
