"""Rehearsals: in this process, in several on this machine, or as one SLURM job.

The job asks for what a training of the scale asks for.
"""

import sys
import time
from pathlib import Path

from possam.launch.local_processes import rehearse_in_processes
from possam.launch.records import Follower, RunRecords
from possam.launch.slurm import SlurmUnreachableError, job_state, require_slurm
from possam.launch.source import freeze
from possam.launch.training_job import Signals, TrainingJob, submit
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.slurm import Allocations
from possam.rehearsal.rehearse import begin, folder
from possam.runtime.environment import Environment
from possam.runtime.errors import InputError, JobFailedError

MINUTES = 30
"""Time limit, so that the job starts soon; a rehearsal of the paper takes a few minutes."""

_LOOK_S, _ASK_S, _LATE_S = 1.0, 5.0, 60.0


class RehearsalJob(TrainingJob):
    """The job; picklable. Its directory is the folder of the rehearsal's record."""

    def _work(self, signals: Signals) -> None:
        from possam.rehearsal.rehearse import perform
        from possam.runtime.gpu_driver import check_device
        from possam.stages.common import set_up_process
        from possam.training.distributed import join

        project = Project(self.scale, folder=self.source / "params")
        with join(check_device(self.device)) as process:
            set_up_process(project)
            perform(project, process, asked=signals)

    def _record(self, job: str) -> None:
        """Nothing: the rehearsal has written its own record."""


def rehearse(scale: str, *, device: str, processes: int, launcher: str) -> int:
    """Rehearse, and print the report. Returns 1 if it found a problem, else 0.

    Args:
        device: ``cpu`` or ``cuda``; processes: on this machine. For ``launcher`` ``local``.
        launcher: ``local`` or ``slurm``.

    Raises:
        InputError: bad parameters, a machine without SLURM, or a refused submission.
        JobFailedError: the job ended without a record.
    """
    from possam.rehearsal import rehearse as here

    if launcher == "slurm":
        rehearse_on_slurm(scale)
    elif processes != 1:
        if code := rehearse_in_processes(scale, device=device, count=processes):
            return code
    else:
        here.rehearse(Project(scale), device=device)
        if Environment.load().processes:
            return 0  # the command that started this process prints the report
    return here.report(Project(scale))


def rehearse_on_slurm(scale: str) -> None:
    """Submit the rehearsal of a scale, and wait until it has written its record.

    Raises:
        InputError: bad parameters, a machine without SLURM, or a refused submission.
        JobFailedError: the job ended without a record.
    """
    root = Path.cwd()
    Project(scale)  # so that an unknown scale leaves no frozen sources behind
    require_slurm("rehearse --launcher slurm")
    source = freeze(root=root)
    project = Project(scale, folder=source / "params")
    layout = Layout(project)
    allocation = Allocations(folder=project.folder).of(scale, "train")
    allocation = allocation.model_copy(update={"minutes": min(MINUTES, allocation.minutes)})
    begin(layout)
    name = f"possam-{scale}-rehearsal"
    job = submit(
        RehearsalJob(
            scale=scale,
            runs=("rehearsal",),
            seed=0,
            device=allocation.device,
            world_size=allocation.world_size,
            directories=(folder(layout).resolve(),),
            source=source,
        ),
        allocation,
        name=name,
        root=root,
    )
    _say(f"submitted job {job}; to end it: scancel {job}")
    _wait(job, name, layout)


def _say(text: str) -> None:
    print(f"rehearsal: {text}", file=sys.stderr, flush=True)


def _wait(job: str, name: str, layout: Layout) -> None:
    records = RunRecords(folder(layout))
    follower = Follower(records, job, say=_say)
    ask_at, shown = 0.0, ""
    while not layout.rehearsal.is_file():
        follower.show()
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + _ASK_S
            try:
                state = job_state(job, name=name)
            except SlurmUnreachableError as error:
                _say(f"{error}; trying again")
                continue
            if str(state) != shown:
                shown = str(state)
                _say(f"job {job}: {shown}")
            if not state.active and state.state != "UNKNOWN":
                _check_end(job, shown, layout, records)
                break
        time.sleep(_LOOK_S)
    follower.show()


def _check_end(job: str, state: str, layout: Layout, records: RunRecords) -> None:
    """Raise the reason of a job that ended without a record, once its files had time to arrive."""
    deadline = time.monotonic() + (_LATE_S if state == "COMPLETED" else _LATE_S / 10)
    while not layout.rehearsal.is_file():
        failure = records.failure(job)
        if failure is not None or time.monotonic() > deadline:
            why = str(failure["message"]) if failure else f"ended as {state} without a record"
            text = f"job {job}: {why}. Log: {records.log(job)}"
            raise InputError(text) if failure and failure["code"] == 2 else JobFailedError(text)
        time.sleep(_LOOK_S)
