"""``--profile slurm`` on a machine without SLURM: the paper is planned, and nothing runs again."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.whole.conftest import Workspace

pytestmark = pytest.mark.pipeline


@pytest.fixture
def without_slurm(finished: Workspace, tmp_path: Path) -> Workspace:
    """The finished pipeline, seen from a machine that has none of SLURM's commands."""
    for name in ("bash", "sh", "tee", "git", "which"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / name).symlink_to(found)

    class Bare(Workspace):
        def environment(self) -> dict[str, str]:
            path = f"{Path(sys.executable).parent}:{tmp_path}"
            return {**super().environment(), "PATH": path}

    return Bare(finished.folder)


def plan(workspace: Workspace, target: str) -> str:
    # The default profile prints no rules, and with them no commands.
    options = ("--profile", "slurm", "--printshellcmds", "--quiet", "host")
    done = workspace.run("snakemake", "--dry-run", target, *options)
    return done.stdout + done.stderr


def test_the_paper_scale_is_planned(without_slurm: Workspace) -> None:
    printed = plan(without_slurm, "results/table1.csv")
    assert "possam train possam_h_coco --seed 0 --scale paper --launcher slurm" in printed
    evaluations = [line for line in printed.splitlines() if "possam evaluate" in line]
    assert evaluations and all("--device cuda" in line for line in evaluations)


def test_the_profile_is_no_part_of_a_rules_identity(without_slurm: Workspace) -> None:
    assert "Nothing to be done" in plan(without_slurm, "results/smoke/table1.csv")


def test_a_training_on_slurm_needs_slurm(without_slurm: Workspace) -> None:
    command = (sys.executable, "-m", "possam.cli", "train", "no_fpn_b_coco", "--launcher", "slurm")
    done = without_slurm.run(*command, check=False)
    assert done.returncode == 2 and "this machine has no sbatch" in done.stderr
    folder = without_slurm.folder / "results/smoke/runs/no_fpn_b_coco"
    assert not folder.exists()
