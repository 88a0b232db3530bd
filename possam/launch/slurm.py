"""The state of jobs: from SLURM's queue, or from its accounting once they have left the queue."""

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
    """SLURM does not answer right now, which says nothing about any job."""


@dataclass(frozen=True)
class JobState:
    """A job as SLURM sees it.

    Attributes:
        state: ``PENDING``, ``RUNNING``, ``COMPLETED``, ``TIMEOUT``, ...; ``UNKNOWN``: SLURM has no
            record of the job (yet).
        elapsed: time since the job started running, as SLURM writes it.
        reason: why it waits; empty if it does not.
        queued: whether this is the queue's answer, which is up to date; accounting lags behind.
    """

    job: str
    name: str
    state: str
    elapsed: str = ""
    reason: str = ""
    queued: bool = False

    @property
    def active(self) -> bool:
        """Whether it runs or will run."""
        return self.state in _ACTIVE

    def __str__(self) -> str:
        waits = self.reason not in ("", "None") and self.state == "PENDING"
        return f"{self.state} ({self.reason})" if waits else self.state


def missing_commands(*commands: str) -> list[str]:
    """Which of SLURM's ``commands`` this machine lacks."""
    return [command for command in commands if shutil.which(command) is None]


def require_slurm(what: str) -> None:
    """Refuse a machine without SLURM's commands.

    Args:
        what: what needs them, for the message.

    Raises:
        InputError: which commands are missing, and the remedy.
    """
    needed = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")
    if missing := missing_commands(*needed):
        raise InputError(
            f"{what}: this machine has no {', '.join(missing)}; call it on a login node of the "
            "cluster, or train without --launcher slurm"
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
    """This user's running and waiting jobs of that name, oldest first."""
    found = _queue(f"--user={getpass.getuser()}", f"--name={name}")
    return sorted((job for job in found if job.active), key=lambda job: int(job.job))


def job_state(job: str, *, name: str) -> JobState:
    """The state of ``job`` (``UNKNOWN`` if its number belongs to a job of another name).

    Raises:
        SlurmUnreachableError: SLURM does not answer.
    """
    found = _queued_or_ended(job)
    return found if found.name == name else JobState(job, name, "UNKNOWN")


def _queued_or_ended(job: str) -> JobState:
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
