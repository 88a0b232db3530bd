"""The state of jobs: from SLURM's queue, or from its accounting once they have left the queue."""

import getpass
import shutil
import subprocess
from dataclasses import dataclass

from possam.runtime.errors import InputError, PossamError

_ACTIVE = frozenset(
    {
        *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING"),
        *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"),
    }
)


class SlurmUnreachableError(PossamError):
    """SLURM does not answer right now, which says nothing about any job."""


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it.

    Attributes:
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``TIMEOUT``, ...; ``UNKNOWN``: SLURM has no
            record of the job (yet).
        elapsed: time since the job started running, as SLURM writes it.
        reason: why the job waits; empty if it does not wait.
        queued: whether the queue gave this state, which is then up to date; accounting lags.
    """

    job: str
    name: str
    state: str
    elapsed: str = ""
    reason: str = ""
    queued: bool = False

    @property
    def active(self) -> bool:
        """Whether the job runs or will run."""
        return self.state in _ACTIVE

    def __str__(self) -> str:
        waits = self.reason not in ("", "None") and self.state == "PENDING"
        return f"{self.state} ({self.reason})" if waits else self.state


def missing_commands(*commands: str) -> list[str]:
    """Which of SLURM's ``commands`` this machine lacks."""
    return [command for command in commands if shutil.which(command) is None]


def require_slurm(what: str) -> None:
    """Raise an InputError on a machine without SLURM's commands, which ``what`` needs."""
    needed = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
    if missing := missing_commands(*needed):
        raise InputError(
            f"{what}: this machine has no {', '.join(missing)}; call it on a login node of the "
            "cluster, or train without --launcher slurm"
        )


def _ask(*command: str) -> tuple[int, str, str]:
    """Exit code, standard output, and standard error on one line."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except FileNotFoundError as error:
        raise InputError(f"{command[0]}: no such command; call it on a login node") from error
    except subprocess.TimeoutExpired as error:
        raise SlurmUnreachableError(f"{command[0]} does not answer") from error
    return done.returncode, done.stdout, " ".join(done.stderr.split())


def _queue(*arguments: str) -> list[JobState]:
    code, output, errors = _ask("squeue", "--noheader", "--format=%i|%j|%T|%M|%r", *arguments)
    if code and "Invalid job id" in errors:
        return []
    if code:
        raise SlurmUnreachableError(f"squeue: {errors}")
    rows = (line.split("|", 4) for line in output.splitlines())
    return [JobState(job, name, state, t, why, True) for job, name, state, t, why in rows]


def active_jobs(name: str) -> list[JobState]:
    """This user's running and waiting jobs of that name, oldest first."""
    found = _queue(f"--user={getpass.getuser()}", f"--name={name}")
    return sorted((job for job in found if job.active), key=lambda job: int(job.job))


def job_state(job: str, *, name: str) -> JobState:
    """The state of ``job`` (``UNKNOWN`` if its number belongs to a job of another name).

    Raises:
        SlurmUnreachableError: SLURM does not answer.
    """
    unknown = JobState(job, name, "UNKNOWN")
    if queued := _queue(f"--jobs={job}", "--states=all"):
        return queued[0] if queued[0].name == name else unknown
    options = ("--noheader", "--parsable2", "--allocations", "--format=JobName,State,Elapsed")
    code, output, errors = _ask("sacct", *options, f"--jobs={job}")
    if code and "accounting storage is disabled" not in errors:
        raise SlurmUnreachableError(f"sacct: {errors}")
    rows = [line.split("|", 2) for line in output.splitlines()]
    if code or not rows or rows[-1][0] != name:
        return unknown
    _, state, elapsed = rows[-1]
    return JobState(job, name, (state.split() or ["UNKNOWN"])[0], elapsed)


def cancel(job: str) -> None:
    """Cancel ``job``; an InputError if SLURM refuses."""
    code, _, errors = _ask("scancel", job)
    if code:
        raise InputError(f"scancel {job}: {errors}")
