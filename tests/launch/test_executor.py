"""Snakemake's executors: what SLURM chooses stays SLURM's choice; no training on a login node."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_slurm import Executor
from snakemake_interface_executor_plugins.settings import CommonSettings

from possam.launch.executor import leave_defaults_to_slurm, refuse_executor
from possam.params import layout
from possam.params.slurm import Allocations
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Executor:
    """The executor as a workflow would have it, at a site where the last job has an account."""
    for name in ("get_account_arg", "get_partition_arg"):
        monkeypatch.setattr(Executor, name, getattr(Executor, name))
    for name, printed in {
        "sacct": "last-years-project",
        "sinfo": "debug*",
        "sacctmgr": "last-years-project",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{printed}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    made = Executor.__new__(Executor)
    made._partitions = made._fallback_account_arg = made._fallback_partition = None
    made.logger = SimpleNamespace(warning=lambda text: None)
    return made


def chosen(executor: Executor, **resources: Any) -> tuple[str, str]:
    class Job:
        def __init__(self) -> None:
            self.resources = SimpleNamespace(**resources, get=lambda n, d=None: resources.get(n, d))

    return next(executor.get_account_arg(Job())), executor.get_partition_arg(Job())


def test_what_a_job_does_not_ask_for_is_not_guessed(executor: Executor) -> None:
    assert chosen(executor) == (" -A last-years-project", " -p debug"), "as the executor has it"
    executor._fallback_account_arg = executor._fallback_partition = None
    leave_defaults_to_slurm()
    assert chosen(executor) == ("", "")
    assert chosen(executor, slurm_account="last-years-project", slurm_partition="p") == (
        " -A last-years-project",
        " -p p",
    )


def plugin(name: str, **settings: bool) -> Any:
    defaults = {"non_local_exec": True, "implies_no_shared_fs": False, "job_deploy_sources": False}
    return SimpleNamespace(name=name, common_settings=CommonSettings(**(defaults | settings)))


def test_executors_that_cannot_run_a_training_are_refused() -> None:
    for one, launcher in [
        *[
            (plugin("slurm"), "slurm"),
            (plugin("lsf"), "local"),
            (plugin("cluster-generic"), "local"),
        ],
        *[(plugin(name, non_local_exec=False), "local") for name in ("local", "touch", "dryrun")],
    ]:
        refuse_executor(one, launcher=launcher)
    with pytest.raises(InputError, match=r"--profile slurm.*params/slurm\.yaml"):
        refuse_executor(plugin("slurm"), launcher="local")
    with pytest.raises(InputError, match="kubernetes: its jobs do not see this folder"):
        refuse_executor(plugin("kubernetes", implies_no_shared_fs=True), launcher="local")


ELSEWHERE = '''
import os
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings

common_settings = CommonSettings(
    non_local_exec=True, implies_no_shared_fs=False, job_deploy_sources=False
)


class Executor(RemoteExecutor):
    """Writes down which rules are submitted, and ends them as failed."""

    def run_job(self, job):
        with open("submitted.txt", "a") as stream:
            stream.write(job.name + "\\n")
        self.report_job_error(SubmittedJobInfo(job, external_jobid="1"), msg="not run")

    async def check_active_jobs(self, active_jobs):
        for job in active_jobs:
            yield job

    def cancel_jobs(self, active_jobs):
        pass
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The pipeline without results, and an executor of another kind of cluster."""
    for name in ("Snakefile", "workflow", "profiles", "slurm", "params", "possam"):
        (tmp_path / name).symlink_to(ROOT / name)
    package = tmp_path / "plugins/snakemake_executor_plugin_elsewhere"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(ELSEWHERE)
    return tmp_path


def snakemake(project: Path, executor: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As with a user's profile in SNAKEMAKE_PROFILE."""
    (project / "own").mkdir(exist_ok=True)
    (project / "own/config.yaml").write_text(f"executor: {executor}\njobs: 100\n")
    path = os.pathsep.join([str(project), str(project / "plugins")])
    own = {"SNAKEMAKE_PROFILE": str(project / "own"), "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-m", "snakemake", *arguments],
        cwd=project,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_training_is_a_job_of_the_users_own_profile(project: Path) -> None:
    job = {"prefix": "smoke/", "run": "possam_b_coco", "seed": "0"}
    for path in Graph(folder=ROOT / "params").inputs("train", job):
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_text("{}")
    target = layout.RUN.format_map(job)
    done = snakemake(project, "elsewhere", "--allowed-rules", "train", "--", target)
    assert (project / "submitted.txt").is_file(), done.stdout + done.stderr
    assert (project / "submitted.txt").read_text() == "train\n"


def test_an_own_profile_for_slurm_is_refused_before_any_job(project: Path) -> None:
    done = snakemake(project, "slurm", "data/smoke/world/manifest.json")
    assert done.returncode == 1 and "type --profile slurm" in done.stdout + done.stderr
    assert not (project / "data").exists()


def test_a_command_uses_as_many_processes_as_its_job_asks_for(project: Path) -> None:
    """Whatever the login node has: Snakemake limits threads to its own cores there."""
    target, printed = (
        "data/paper/datasets/coco_train/manifest.json",
        ("--printshellcmds", "--quiet"),
    )
    options = ("-n", "--cores", "1", *printed, "host", "--", target)
    asked = Allocations(folder=ROOT / "params").of("paper", "convert").cpus
    done = snakemake(project, "slurm", "--profile", "slurm", *options)
    text = done.stdout + done.stderr
    assert asked > 1 and f"cpus_per_task={asked}," in text
    assert f"possam convert coco train --scale paper --workers {asked} " in text
    here = snakemake(project, "local", "--profile", "profiles/default", *options)
    assert "possam convert coco train --scale paper --workers 1 " in here.stdout + here.stderr
