"""``--profile slurm`` on a machine without SLURM: the paper is planned, and nothing runs again."""

import re
import shutil
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from possam.params.slurm import Kind
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


def plan(workspace: Workspace, *targets: str) -> str:
    # The default profile prints no rules, and with them no commands.
    options = ("--profile", "slurm", "--printshellcmds", "--quiet", "host")
    done = workspace.run("snakemake", "--dry-run", *targets, *options)
    return done.stdout + done.stderr


def test_the_paper_scale_is_planned(without_slurm: Workspace) -> None:
    printed = plan(without_slurm, "results/table1.csv")
    assert "possam train possam_h_coco --seed 0 --scale paper --launcher slurm" in printed
    evaluations = [line for line in printed.splitlines() if "possam evaluate" in line]
    assert evaluations and all("--device cuda" in line for line in evaluations)


KIND_OF = {
    **{name: {name} for name in ("world", "convert", "features", "table", "figure")},
    **{"evaluate": {"evaluate", "timing"}, "training_free": {"evaluate"}},
    **{"track": {"table"}, "report": {"table"}},
}
"""Rule -> the kinds of its jobs."""


def test_every_rule_asks_for_what_its_kind_of_job_says(without_slurm: Workspace) -> None:
    path = without_slurm.folder / "params/slurm.yaml"
    before = path.read_text()
    file = yaml.safe_load(before)
    for kind in get_args(Kind):
        own = {"partition": f"p-{kind}", "qos": f"q-{kind}", "reservation": f"r-{kind}"}
        own |= {"extra": [f"--licenses={kind}"], "setup": [f"export KIND={kind}"]}
        file["scales"]["smoke"].setdefault(kind, {}).update(own)
    path.write_text(yaml.safe_dump(file))
    try:
        targets = ("reports/smoke/report.html", "results/smoke/table1.tracking.json")
        printed = plan(without_slurm, *targets, "--forceall")
    finally:
        path.write_text(before)
    seen: dict[str, set[str]] = {rule: set() for rule in KIND_OF}
    for block in printed.split("\nrule ")[1:]:
        rule, partition = re.match(r"\w+", block)[0], re.search(r"slurm_partition=p-(\w+)", block)  # type: ignore[index]
        if rule in ("download", "train"):  # here; a training asks for its own job
            assert partition is None
            continue
        assert partition is not None
        kind = partition[1]
        seen[rule].add(kind)
        assert f" qos=q-{kind}," in block, block
        assert f"slurm_extra=--reservation=r-{kind} --licenses={kind}," in block
        command = block.split("Shell command: ")[1]
        assert command.index(f"export KIND={kind}\n") < command.index("\npossam ")
    assert seen == KIND_OF


def test_the_profile_is_no_part_of_a_rules_identity(without_slurm: Workspace) -> None:
    assert "Nothing to be done" in plan(without_slurm, "results/smoke/table1.csv")


def test_a_training_on_slurm_needs_slurm(without_slurm: Workspace) -> None:
    command = (sys.executable, "-m", "possam.cli", "train", "no_fpn_b_coco", "--launcher", "slurm")
    done = without_slurm.run(*command, check=False)
    assert done.returncode == 2 and "this machine has no sbatch" in done.stderr
    folder = without_slurm.folder / "results/smoke/runs/no_fpn_b_coco"
    assert not folder.exists()
