"""``snakemake results/smoke/table1.csv --profile slurm``, typed as it stands, on a real SLURM."""

import json
from pathlib import Path

import pytest

from tests.slurm.conftest import TABLE, ClusterWorkspace
from tests.support.cluster import Cluster
from tests.whole.conftest import Workspace, copy_project

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def remote(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterWorkspace:
    """The smoke pipeline through SLURM."""
    folder = copy_project(tmp_path_factory.mktemp("remote")).folder
    workspace = ClusterWorkspace(folder, cluster)
    workspace.run("snakemake", TABLE, "--profile", "slurm")
    return workspace


def trainings(workspace: Workspace) -> list[Path]:
    return sorted(workspace.folder.glob("results/smoke/runs/*/seed0"))


def test_the_table_is_that_of_the_local_profile(local: Workspace, remote: ClusterWorkspace) -> None:
    assert (remote.folder / TABLE).read_bytes() == (local.folder / TABLE).read_bytes()
    assert [path.parent.name for path in trainings(remote)] == [
        path.parent.name for path in trainings(local)
    ]
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
        assert "--gres=gpu:a100:8\n" in (path / f"slurm/{job}_submission.sh").read_text()
        log = (path / f"slurm/{job}_0_log.err").read_text()
        assert f"job {job}, attempt 1" in log and "2 processes" in log
        # The second process is there too, and trained.
        assert (path / f"slurm/{job}_1_result.pkl").is_file()


def test_switching_the_profile_reruns_nothing(remote: ClusterWorkspace) -> None:
    assert "Nothing to be done" in remote.snakemake(TABLE)
    assert "Nothing to be done" in remote.run("snakemake", TABLE, "--profile", "slurm").stderr
