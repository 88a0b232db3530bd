"""``results/smoke/table1.csv`` by jobs of a real SLURM, and by a driver that is a job itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import TABLE, ClusterWorkspace, edit, small_project
from tests.support.cluster import KINDS, Cluster
from tests.whole.conftest import REPOSITORY, Workspace

pytestmark = pytest.mark.slurm

SEEN = {"world", "convert", "features", "train", "evaluate", "table"}
"""Kinds of jobs that make the table."""


def each_kind_its_own(file: dict[str, Any]) -> None:
    """Partition, QOS, options and setup of every kind; GPUs without a type."""
    kinds = file["scales"]["smoke"]
    for number, kind in enumerate(KINDS):
        own = {"partition": kind, "qos": kind, "extra": [f"--nice={number}"]}
        kinds[kind] |= own | {"setup": [f"echo {kind} >> setup.log"]}
    kinds["train"] |= {"gpu_type": None}
    kinds["evaluate"] |= {"gpus": 1}


@pytest.fixture(scope="module")
def remote(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterWorkspace:
    """The smoke pipeline through SLURM, as docs/your-cluster.md runs it in a job."""
    workspace = ClusterWorkspace(small_project(tmp_path_factory.mktemp("remote")), cluster)
    edit(workspace.folder / "params/slurm.yaml", each_kind_its_own)
    page = (REPOSITORY / "docs/your-cluster.md").read_text().splitlines()
    (line,) = (line for line in page if line.startswith("sbatch "))
    line = line.replace("--partition=cpu", "--wait --cpus-per-task=1 --mem=2G")
    command = line.replace("results/table1.csv", TABLE).split()
    assert command[-2:] == ["workflow/driver.sh", TABLE]
    done = workspace.run(*command, check=False)
    (log,) = workspace.folder.glob("driver-*.log")
    assert done.returncode == 0, done.stderr + log.read_text()
    return workspace


def trainings(workspace: Workspace) -> list[Path]:
    return sorted(workspace.folder.glob("results/smoke/runs/*/seed0"))


def test_the_table_is_that_of_the_local_profile(local: Workspace, remote: ClusterWorkspace) -> None:
    """From cached features, and from images that worker processes read under srun."""
    assert (remote.folder / TABLE).read_bytes() == (local.folder / TABLE).read_bytes()
    names = [path.parent.name for path in trainings(remote)]
    assert names == [path.parent.name for path in trainings(local)]
    assert names == ["possam_b_ade20k", "possam_b_coco"]
    live = json.loads((trainings(remote)[0] / "run.json").read_text())["parameters"]["training"]
    assert (live["feature_cache"], live["workers"]) == (False, 1)
    for here, there in zip(trainings(local), trainings(remote), strict=True):
        mine, other = (json.loads((path / "run.json").read_text()) for path in (here, there))
        assert mine["weights_sha256"] == other["weights_sha256"]
        assert mine["identity"] == other["identity"]


def test_trainings_ask_for_eight_gpus_and_run_in_several_processes(
    remote: ClusterWorkspace,
) -> None:
    for path in trainings(remote):
        record = json.loads((path / "slurm/job.json").read_text())
        assert len(record["submissions"]) == 1
        job = record["job"]
        assert "--gres=gpu:8\n" in (path / f"slurm/{job}_submission.sh").read_text()
        log = (path / f"slurm/{job}_0_log.err").read_text()
        assert f"job {job}, attempt 1" in log and "2 processes" in log
        # The second process is there too, and trained.
        assert (path / f"slurm/{job}_1_result.pkl").is_file()


def test_each_kind_of_job_has_its_own_partition_qos_options_and_setup(
    remote: ClusterWorkspace, cluster: Cluster
) -> None:
    columns = "--format=Partition,QOS,ReqTRES,SubmitLine"
    printed = cluster.command("sacct", "--allocations", "--noheader", "--parsable2", columns)
    seen = set()
    for row in printed.splitlines():
        partition, qos, requested, line = row.split("|", 3)
        if str(remote.folder) not in line:  # the driver, and jobs of other tests
            continue
        if rule := re.search(r"--comment rule_([a-z]+)", line):
            kind = rule[1]
            assert f"--nice={KINDS.index(kind)}" in line
            assert ("gres/gpu=1" in requested) == (kind == "evaluate")
        else:
            kind = "train"
            assert "submission_file" in line and "gres/gpu=8" in requested
        assert (partition, qos) == (kind, kind)
        seen.add(kind)
    assert seen == SEEN
    for path in trainings(remote):
        (script,) = path.glob("slurm/*_submission.sh")
        assert f"#SBATCH --nice={KINDS.index('train')}\n" in script.read_text()
    assert set((remote.folder / "setup.log").read_text().split()) == SEEN


def test_a_qos_that_the_cluster_requires_is_missed_before_anything_is_queued(
    remote: ClusterWorkspace,
) -> None:
    def without(file: dict[str, Any]) -> None:
        file["scales"]["smoke"]["train"]["qos"] = None

    path = remote.folder / "params/slurm.yaml"
    before = edit(path, without)
    done = remote.possam("train", "no_iou_b_coco", "--launcher", "slurm", check=False)
    path.write_text(before)
    assert done.returncode == 2
    assert "Invalid qos specification; see scales.smoke.train and defaults" in done.stderr


def test_switching_the_profile_reruns_nothing(remote: ClusterWorkspace) -> None:
    assert "Nothing to be done" in remote.snakemake(TABLE)
    assert "Nothing to be done" in remote.run("snakemake", TABLE, "--profile", "slurm").stderr
