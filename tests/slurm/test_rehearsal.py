"""``possam rehearse --launcher slurm`` on a real SLURM: one job, requeued once."""

import json

import pytest

from tests.slurm.conftest import ClusterWorkspace
from tests.support.cluster import Cluster
from tests.whole.conftest import copy_project

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def bare(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterWorkspace:
    """A project where nothing but CLIP's configuration was fetched."""
    folder = copy_project(tmp_path_factory.mktemp("rehearsal")).folder
    workspace = ClusterWorkspace(folder, cluster)
    files = ("synthetic_clip_config", "synthetic_clip_bpe")
    workspace.possam("download", *files, "--scale", "smoke")
    return workspace


def test_a_rehearsal_tries_everything_in_one_job(bare: ClusterWorkspace) -> None:
    done = bare.possam("rehearse", "--scale", "smoke", "--launcher", "slurm")
    assert "scale smoke: 0 problems" in done.stdout
    folder = bare.folder / "results/smoke/rehearsal"
    record = json.loads((folder / "rehearsal.json").read_text())
    assert record["processes"] == 2 and len(record["trials"]) == 12
    texts = {one["matter"]: one["text"] for one in record["findings"]}
    assert "requeued by SLURM after its first step, went on from step_" in texts["resume"]
    assert texts["exchange"].startswith("gloo: ") and "over 2 processes" in texts["exchange"]
    (log,) = (folder / "slurm").glob("*_0_log.err")
    text = log.read_text()
    assert "attempt 1" in text and "attempt 2" in text
    assert record["rates"]["training"].keys() == {
        *("synthetic_b", "synthetic_l", "synthetic_h", "synthetic_clip_config"),
    }
    # The plan uses them from now on; nothing of the study was touched.
    plan = bare.possam("plan", "table1", "--scale", "smoke").stdout
    assert "Rates of training measured at this scale" in plan
    assert not (bare.folder / "results/smoke/runs").exists()


def test_a_rehearsal_that_cannot_work_says_why(bare: ClusterWorkspace) -> None:
    asset = bare.folder / "data/smoke/assets/synthetic_clip_config.record.json"
    kept = asset.read_bytes()
    asset.unlink()
    try:
        done = bare.possam("rehearse", "--scale", "smoke", "--launcher", "slurm", check=False)
    finally:
        asset.write_bytes(kept)
    assert done.returncode == 2
    assert "possam download synthetic_clip_config --scale smoke" in done.stderr
    assert "Log: " in done.stderr
