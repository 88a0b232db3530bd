"""What SLURM says about jobs: its queue first, its accounting for jobs that left the queue."""

import getpass
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from possam.runtime.errors import InputError, PossamError

_TIMEOUT_S = 60
_ACTIVE = frozenset(
    {
        *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"),
    }
)
_FORMAT = "%i|%j|%T|%M|%r"


class SlurmUnreachableError(PossamError):
    """SLURM does not answer just now. It says nothing about any job."""


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it.

    Attributes:
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``TIMEOUT``, ...; ``UNKNOWN``: it has no
            record of the job (yet).
        elapsed: time since it started running, as SLURM writes it.
        reason: why it waits; empty if it does not.
        queued: the queue knows it, which is up to date; accounting lags by seconds.
    """

    job: str
    name: str
    state: str
    elapsed: str = ""
    reason: str = ""
    queued: bool = False

    @property
    def active(self) -> bool:
        """Whether it runs, or will."""
        return self.state in _ACTIVE

    def __str__(self) -> str:
        told = self.reason not in ("", "None") and self.state == "PENDING"
        return f"{self.state} ({self.reason})" if told else self.state


def require_slurm() -> None:
    """Refuse a machine without SLURM's commands.

    Raises:
        InputError: which are missing, and what to do.
    """
    commands = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
    if missing := [command for command in commands if shutil.which(command) is None]:
        raise InputError(
            f"--launcher slurm: this machine has no {', '.join(missing)}; call it on a login node "
            "of the cluster, or train here without --launcher"
        )


def _ask(command: Sequence[str]) -> tuple[int, str, str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: no such command; call it on a login node") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachableError(f"{command[0]} does not answer") from error
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def _queue(*arguments: str) -> list[JobState]:
    code, output, errors = _ask(["squeue", "--noheader", f"--format={_FORMAT}", *arguments])
    if code:
        if "Invalid job id" in errors:
            return []
        raise SlurmUnreachableError(f"squeue: {errors}")
    rows = (line.split("|", 4) for line in output.splitlines())
    return [
        JobState(job, name, state, elapsed, reason, queued=True)
        for job, name, state, elapsed, reason in rows
    ]


def active_jobs(name: str) -> list[JobState]:
    """This user's jobs of that name that run or wait, oldest first."""
    found = _queue(f"--user={getpass.getuser()}", f"--name={name}")
    return sorted((job for job in found if job.active), key=lambda job: int(job.job))


def job_state(job: str, *, name: str) -> JobState:
    """What became of ``job`` (``UNKNOWN`` where the number is that of a job of another name).

    Raises:
        SlurmUnreachableError: the queue does not answer.
    """
    found = _ended_or_queued(job)
    return found if found.name == name else JobState(job, name, "UNKNOWN")


def _ended_or_queued(job: str) -> JobState:
    if found := _queue(f"--jobs={job}", "--states=all"):
        return found[0]
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}"]
    code, output, errors = _ask([*command, "--format=JobName,State,Elapsed"])
    if code and "accounting storage is disabled" in errors:
        return JobState(job, "", "UNKNOWN")
    if code:
        raise SlurmUnreachableError(f"sacct: {errors}")
    rows = [line.split("|", 2) for line in output.splitlines()]
    if not rows:
        return JobState(job, "", "UNKNOWN")
    name, state, elapsed = rows[-1]
    return JobState(job, name, (state.split() or ["UNKNOWN"])[0], elapsed)


def cancel(job: str) -> None:
    """Cancel ``job``.

    Raises:
        InputError: SLURM refuses.
    """
    code, _, errors = _ask(["scancel", job])
    if code:
        raise InputError(f"scancel {job}: {errors}")
