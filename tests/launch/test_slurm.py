"""What SLURM's commands print, read: the commands are scripts that print what the real ones do."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from possam.launch.slurm import SlurmUnreachableError, active_jobs, job_state, require_slurm
from possam.launch.training_job import ranks
from possam.runtime.errors import InputError

Fake = Callable[[str, str], None]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))

    def make(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


GONE = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


def test_the_queue_comes_first(command: Fake) -> None:
    command("squeue", "echo '7|possam-r|PENDING|0:00|Resources'")
    command("sacct", "echo 'possam-r|FAILED|00:00:01'")
    state = job_state("7", name="possam-r")
    assert state.active and state.queued and str(state) == "PENDING (Resources)"


@pytest.mark.parametrize(
    ("printed", "state", "active"),
    [
        ("COMPLETED|00:00:09", "COMPLETED", False),
        ("CANCELLED by 1000|00:00:09", "CANCELLED", False),
        ("RUNNING|00:00:09", "RUNNING", True),
        ("NODE_FAIL|00:00:09", "NODE_FAIL", False),
        ("", "UNKNOWN", False),
    ],
)
def test_then_the_accounting(command: Fake, printed: str, state: str, active: bool) -> None:
    command("squeue", GONE)
    command("sacct", f"test -z '{printed}' || echo 'possam-r|{printed}'")
    found = job_state("7", name="possam-r")
    assert (found.state, found.active, found.queued) == (state, active, False)


def test_a_number_that_another_job_got_is_not_ours(command: Fake) -> None:
    command("squeue", "echo '7|another|RUNNING|0:00|None'")
    assert job_state("7", name="possam-r").state == "UNKNOWN"
    command("squeue", GONE)
    command("sacct", "echo 'another|RUNNING|00:00:01'")
    assert job_state("7", name="possam-r").state == "UNKNOWN"


def test_a_controller_that_is_down_says_nothing_about_jobs(command: Fake) -> None:
    command("squeue", "echo 'Unable to contact slurm controller' >&2; exit 1")
    command("sacct", "echo 'possam-r|FAILED|00:00:01'")
    with pytest.raises(SlurmUnreachableError, match="Unable to contact"):
        job_state("7", name="possam-r")
    with pytest.raises(SlurmUnreachableError):
        active_jobs("possam-r")


def test_accounting_that_is_down_is_no_end_of_a_job(command: Fake) -> None:
    command("squeue", GONE)
    command("sacct", "echo 'sacct: error: Sending PersistInit msg: Connection refused' >&2; exit 1")
    with pytest.raises(SlurmUnreachableError, match="Connection refused"):
        job_state("7", name="possam-r")
    command("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert job_state("7", name="possam-r").state == "UNKNOWN"


def test_active_jobs_are_in_the_order_of_their_numbers(command: Fake) -> None:
    command(
        "squeue",
        "echo '10|n|RUNNING|1:00|None'; echo '9|n|PENDING|0:00|None'; echo '8|n|FAILED|0:01|x'",
    )
    assert [job.job for job in active_jobs("possam-r")] == ["9", "10"]


def test_a_machine_without_slurm_is_refused(command: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(InputError, match=r"^jobs tail: .* no sbatch, srun, .* login node"):
        require_slurm("jobs tail")


VARIABLES = {
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
}


def test_ranks_are_slurms() -> None:
    assert ranks(VARIABLES, hosts=("node3", "node4"), world_size=8) == {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "MASTER_ADDR": "node3",
    }
    one = ranks(VARIABLES, hosts=("node3",), world_size=8)
    assert one["MASTER_ADDR"] == "127.0.0.1"


def test_another_number_of_processes_is_refused() -> None:
    with pytest.raises(InputError, match="SLURM runs 8 processes, but 16 were asked for"):
        ranks(VARIABLES, hosts=("node3",), world_size=16)
