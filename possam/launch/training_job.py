"""The job of one training, or of several: how it is submitted, and what its processes do."""

import contextlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from possam.launch.records import FOLDER, RunRecords
from possam.launch.source import check
from possam.params.slurm import Allocation
from possam.runtime.environment import FORKSERVER_VARIABLE, SOURCE_VARIABLE, job_variables
from possam.runtime.errors import InputError, PossamError
from possam.runtime.faults import explain
from possam.runtime.files import write_json
from possam.runtime.locks import is_held
from possam.runtime.provenance import source_state
from possam.runtime.secrets import guard_output, redact
from possam.training.options import SAVE, SAVE_AND_END

_LOCK_S = 180.0
"""A network file system takes a minute or two to free the lock of a node that died."""

_KILL_S = 600.0
"""How long SLURM may take to kill the other processes of a job that is put back."""


@dataclass(frozen=True)
class TrainingJob:
    """One training, or several together; picklable. submitit calls it in every process of the job.

    Attributes:
        runs: their names; all have one seed.
        device: ``cpu`` or ``cuda``.
        world_size: requested number of processes.
        directories: the runs' folders; the first holds the job's files and logs.
        source: the snapshot whose code and parameters are used.
    """

    scale: str
    runs: tuple[str, ...]
    seed: int
    device: str
    world_size: int
    directories: tuple[Path, ...]
    source: Path

    @property
    def folder(self) -> Path:
        """The run's folder that holds the job's files and logs."""
        return self.directories[0]

    def checkpoint(self) -> Any:
        """Called before a time-out or preemption; returns the same job, which then resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def __call__(self) -> None:
        """Train, and record a success or failure; an exception ends the whole job."""
        from submitit.core.utils import UncompletedJobError
        from submitit.slurm.slurm import SlurmJobEnvironment

        guard_output()
        environment = SlurmJobEnvironment()
        job, rank = environment.job_id, environment.global_rank
        records = RunRecords(self.folder)
        records.forget_failure(job, rank)
        try:
            hosts = tuple(environment.hostnames)
            os.environ.update(ranks(os.environ, hosts=hosts, world_size=self.world_size))
            attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
            with records.meeting(job, attempt, rank=rank) as port:
                os.environ["MASTER_PORT"] = str(port)
                if rank == 0:
                    self._announce(job, environment.hostname)
                try:
                    self._until_asked(Signals())
                finally:
                    if rank == 0:
                        self._record(job)
        except Exception as error:
            message, final, code = str(error), True, 2
            if isinstance(error, UncompletedJobError):
                message = "max_requeues (params/slurm.yaml) is used up; submit it again to go on"
                code = 1
            elif not isinstance(error, PossamError):
                message = explain(error) or f"{type(error).__name__}: {error}"
                final, code = False, 1
            else:
                from possam.training.distributed import LostProcessError

                if isinstance(error, LostProcessError):  # the parameters are not at fault
                    final, code = False, 1
            records.write_failure(job, rank, message=redact(message), final=final, code=code)
            if redact(error) != str(error):  # submitit keeps and prints what is raised
                raise PossamError(redact(message)) from None
            raise

    def _announce(self, job: str, host: str) -> None:
        import possam

        used = Path(possam.__file__).resolve().parents[1]
        if used != self.source:
            raise InputError(
                f"the job runs the code in {used}, not the frozen {self.source}; something sets "
                "PYTHONPATH or sys.path after the job has started"
            )
        check(self.source)
        attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0")) + 1
        print(
            f"job {job}, attempt {attempt}, {host}, {self.world_size} processes, sources {used}",
            file=sys.stderr,
            flush=True,
        )

    def _record(self, job: str) -> None:
        """What the first process writes at the end: which runs are finished."""
        for directory in self.directories:
            if (directory / "run.json").is_file():
                RunRecords(directory).write_finished(job)

    def _until_asked(self, signals: "Signals") -> None:
        """Work; put the job back into the queue if a signal asked for it."""
        from possam.training.loop import EndedEarlyError

        try:
            self._work(signals)
        except EndedEarlyError as error:
            print(error, file=sys.stderr, flush=True)
            signals.requeue()
            raise

    def _work(self, signals: "Signals") -> None:
        from possam.params.layout import RUN_LOCK
        from possam.params.project import Project
        from possam.stages.train import train

        deadline = time.monotonic() + _LOCK_S
        locks = [directory / RUN_LOCK for directory in self.directories]
        while os.environ["RANK"] == "0" and any(map(is_held, locks)):
            if time.monotonic() > deadline:
                break  # train() refuses, with the reason
            time.sleep(1)
        project = Project(self.scale, folder=self.source / "params")
        train(project, self.runs, seed=self.seed, device=self.device, asked=signals)


class Signals:
    """What SLURM's signals ask of the training in this process, as its loop asks after each step.

    SIGUSR2, before the time limit, asks for a checkpoint and the end; then submitit's own handler
    puts the job back into the queue. SIGTERM, before SLURM kills a cancelled, preempted or requeued
    job, asks for a checkpoint. Until the first step has ended there is nothing to save, and
    submitit's handler acts at once.
    """

    def __init__(self) -> None:
        self._submitit, self._asked, self._began = signal.getsignal(signal.SIGUSR2), 0, False
        signal.signal(signal.SIGUSR2, self._end)
        signal.signal(signal.SIGTERM, self._save)

    def __call__(self) -> int:
        """What was asked since the last call."""
        self._began = True
        asked, self._asked = self._asked, 0
        return asked

    def _save(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = max(self._asked, SAVE)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._began:
            self._asked = SAVE_AND_END
        else:
            self._by_submitit(number, frame)

    def _by_submitit(self, number: int, frame: FrameType | None) -> None:
        if callable(self._submitit):
            self._submitit(number, frame)

    def requeue(self) -> None:
        """Put the job back into the queue (rank 0), or wait for its end (the others).

        Raises:
            SystemExit: rank 0 has put it back.
            UncompletedJobError: rank 0 may not put it back once more.
        """
        self._by_submitit(signal.SIGUSR2, None)
        time.sleep(_KILL_S)


def ranks(
    variables: Mapping[str, str], *, hosts: tuple[str, ...], world_size: int
) -> dict[str, str]:
    """torch's variables for this process but for the port, from those that srun set.

    Args:
        hosts: the job's nodes; the processes meet on the first.
        world_size: requested number of processes.

    Raises:
        InputError: another number of processes runs, which would divide the batch differently.
    """
    running = int(variables.get("SLURM_NTASKS", "1"))
    if running != world_size:
        raise InputError(
            f"SLURM runs {running} processes, but {world_size} were asked for (nodes x tasks in "
            "params/slurm.yaml); look for SLURM_ or SBATCH_ variables that change it"
        )
    return {
        "RANK": variables["SLURM_PROCID"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "WORLD_SIZE": str(world_size),
        # On one node the loopback address saves resolving a host name.
        "MASTER_ADDR": hosts[0] if len(hosts) > 1 else "127.0.0.1",
    }


def submit(job: TrainingJob, allocation: Allocation, *, name: str, root: Path) -> str:
    """Submit ``job`` with the working directory ``root``; returns its number.

    Raises:
        InputError: SLURM refuses the request in ``params/slurm.yaml``.
    """
    import submitit
    from submitit.core.utils import FailedJobError

    folder = job.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    git = folder / f"git_{job.source.name}.json"
    if not git.exists():
        write_json(git, source_state())
    python = f"{allocation.inside} python" if allocation.container else None
    limit = allocation.max_requeues
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=limit, python=python)
    names = ("account", "partition", "qos", "constraint", "exclusive")
    optional = {name: getattr(allocation, name) for name in names} | allocation.gpu_request
    options = dict(option[2:].partition("=")[::2] for option in allocation.extra)
    more = {"reservation": allocation.reservation} if allocation.reservation else {}
    executor.update_parameters(
        job_name=name,
        comment=f"possam {' '.join(job.runs)} seed {job.seed}, scale {job.scale}",
        nodes=allocation.nodes,
        ntasks_per_node=allocation.tasks,
        cpus_per_task=allocation.cpus,
        mem=f"{allocation.memory_gib}G",
        time=allocation.minutes,
        signal_delay_s=allocation.signal_s,
        # SLURM requeues the job after the loss of a node, submitit before a time-out.
        additional_parameters={
            **{name: value or True for name, value in options.items()},
            **more,
            "requeue": True,
            "chdir": str(root),
        },
        srun_args=[
            # A process that gives up ends all; otherwise the others would wait for it.
            "--kill-on-bad-exit=1",
            # Since SLURM 22.05 srun does not inherit this option from sbatch.
            f"--cpus-per-task={allocation.cpus}",
        ],
        setup=[
            *allocation.setup_lines,
            # `python -m` would look in the working directory first.
            "export PYTHONSAFEPATH=1",
            f"export PYTHONPATH={shlex.quote(str(job.source))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export {SOURCE_VARIABLE}={shlex.quote(str(git))}",
            f"unset {FORKSERVER_VARIABLE}",
        ],
        **{name: value for name, value in optional.items() if value},
    )
    try:
        with _outside_any_job(allocation.said):
            return str(executor.submit(job).job_id)
    except FailedJobError as error:
        raise InputError(
            f"sbatch refuses the job: {' '.join(str(error).split())}; see scales.{job.scale}."
            "train and defaults in params/slurm.yaml"
        ) from error


@contextlib.contextmanager
def _outside_any_job(said: Set[str]) -> Iterator[None]:
    """Hide the variables of a job that the driver may run in: sbatch would inherit them.

    ``said``: variables of sbatch that are hidden as well, because the job's request decides.
    """
    hidden = job_variables(os.environ) | (said & os.environ.keys())
    values = {name: os.environ.pop(name) for name in hidden}
    try:
        yield
    finally:
        os.environ.update(values)
