"""A driver is the command that finds or submits the job of a training, and waits for the job.

A training has at most one active job, however many drivers wait for it: drivers look and submit
under a lock, and find a job by its name even if the driver that submitted it left no record. SLURM
and submitit requeue a job; a driver submits again only after a job was lost, at most
``max_requeues`` times. Nothing else retries.
"""

import signal
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from possam.launch.records import Follower, JobRecord, RunRecords, Submission
from possam.launch.slurm import (
    JobState,
    SlurmUnreachableError,
    active_jobs,
    job_state,
    require_slurm,
)
from possam.launch.source import freeze
from possam.launch.training_job import TrainingJob, submit
from possam.params.layout import RUN_LOCK
from possam.params.project import Project
from possam.params.slurm import Allocations
from possam.runtime.errors import InputError, JobFailedError
from possam.runtime.files import hash_json
from possam.runtime.gpu_driver import fault_here
from possam.runtime.locks import hold, is_held

T = TypeVar("T")

_LOCK_S = 300.0
_LOOK_S = 1.0
_SLOWEST_S = 30.0
_UNKNOWN_S = 180.0
"""How long a job may be missing from queue and accounting before it counts as lost."""

_LATE_S = 60.0
"""How long network storage may take to show the files of a completed job."""

_FINAL = {
    "CANCELLED": "it was cancelled",
    "OUT_OF_MEMORY": "it ran out of memory; raise memory_gib in params/slurm.yaml",
    "DEADLINE": "its deadline passed",
}
"""States after which a job is not submitted again."""


def train_on_slurm(scale: str, name: str, *, seed: int | None, accept_code: bool = False) -> None:
    """Train run ``name`` as a SLURM job; returns when the training is complete.

    If a job of the same training is queued or running, it is waited for and nothing is submitted.
    A run that is finished already, or of other code that is accepted (``accept_code``), is settled
    here, without a job.

    Raises:
        InputError: bad parameters, a refused submission, an active job of another identity, or
            nothing to accept.
        JobFailedError: the job failed for good.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the job goes on, and a line says so.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        driver = _Driver(scale, name, seed, accept_code=accept_code)
        try:
            driver.drive()
        except KeyboardInterrupt:
            driver.say_what_goes_on()
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Driver:
    """One waiting command, with the parameters and the identity of the frozen sources."""

    def __init__(self, scale: str, name: str, seed: int | None, *, accept_code: bool) -> None:
        from possam.stages.train import Training

        self.root = Path.cwd()
        # First, so that an unknown scale or run leaves no frozen sources behind.
        Project(scale).run(name, seed=seed)
        self.source = freeze(root=self.root)
        project = Project(scale, folder=self.source / "params")
        training = Training(project, name, seed=seed, package=self.source / "possam")
        self.scale, self.name, self.seed = scale, name, training.run.seed
        self.allocation = Allocations(folder=project.folder).of(scale, "train")
        device = training.files.device_of(
            training.on, self.allocation.device, accept_code=accept_code
        )
        self.training, self.accept_code = training, accept_code
        self.trains = training.on(device)
        self.identity = hash_json(self.trains)
        # Unique to this training in this project, so that its job can be found by name.
        key = hash_json([str(self.root.resolve()), self.identity])[:12]
        self.job_name = f"possam-{scale}-{name}-seed{self.seed}-{key}"
        self.directory = training.directory
        self.records = RunRecords(self.directory)
        self.record: JobRecord | None = None
        self.submitted_here = 0

    def say(self, text: str) -> None:
        print(f"{self.name} seed {self.seed}: {text}", file=sys.stderr, flush=True)

    def drive(self) -> None:
        if self._is_finished():
            return
        require_slurm("--launcher slurm")
        if self.allocation.device == "cuda" and (fault := fault_here()):
            self.say(f"on this machine, {fault}; where the nodes have it too, the job refuses")
        why, job, message = "first", None, None
        while True:
            record = self.record = self._find_or_submit(why, lost=job)
            if record is None:
                return
            job = record.job
            state = self._wait(job)
            if state is None:
                self.say(f"job {job} has trained it: {self.directory}")
                return
            message = self._check_end(job, state, message)
            why = f"job {job}: {message or f'ended as {state.state} without a message'}"
            if self.submitted_here > self.allocation.max_requeues:
                raise JobFailedError(
                    f"{why}; submitted {self.submitted_here} times, which is all that "
                    "max_requeues in params/slurm.yaml allows; the same command resumes at the "
                    f"last checkpoint. Log: {self.records.log(job)}"
                )
            self.say(f"{why}; it resumes at its last checkpoint")

    def _check_end(self, job: str, state: JobState, last_message: str | None) -> str | None:
        """The message of a job that ended without a result; raises if no other job can succeed."""
        log = f"Log: {self.records.log(job)}"
        if state.state in _FINAL:
            raise JobFailedError(f"job {job}: {_FINAL[state.state]}. {log}")
        failure = self.records.failure(job)
        if failure is None:
            return None
        message = str(failure["message"])
        if failure["code"] == 2:
            raise InputError(f"job {job}: {message}")
        # A single exception may come from a lost process; the same one twice does not.
        if failure["final"] or message == last_message:
            raise JobFailedError(f"job {job}: {message}. {log}")
        return message

    def _is_finished(self) -> bool:
        if finished := self.records.finish(self.identity):
            self.say(f"{self.directory}: finished already; nothing to do")
        return finished

    def _settle(self) -> bool:
        """Whether the run is finished once it was taken back or accepted, which is done here."""
        from possam.stages.train import only_one

        accepts = self.accept_code and self.training.files.held().get("hash") != self.identity
        if is_held(self.directory / RUN_LOCK) and not accepts:
            return False  # of a lost job, for some time; the next job waits
        with only_one(self.directory):
            return self.training.settle(self.trains, accept_code=self.accept_code)

    def _find_or_submit(self, why: str, *, lost: str | None) -> JobRecord | None:
        """The record of this training's active job; submits one if there is none.

        None: the training is finished.

        ``why``: the reason for a submission. ``lost``: a job that is known to have ended.

        Raises:
            InputError: an active job trains this run with another identity, or SLURM refuses.
        """
        with hold(self.records.folder / ".lock", timeout=_LOCK_S):
            record = self._patiently(lambda: self._find(lost))
            if record is not None:
                self.say(f"job {record.job} is there already; waiting for it")
                return record
            # Another driver's job may have ended in the meantime.
            if self._is_finished() or self._settle():
                return None
            job = submit(
                TrainingJob(
                    scale=self.scale,
                    run=self.name,
                    seed=self.seed,
                    device=self.allocation.device,
                    world_size=self.allocation.world_size,
                    directory=self.directory.resolve(),
                    source=self.source,
                ),
                self.allocation,
                name=self.job_name,
                root=self.root,
            )
            self.submitted_here += 1
            record = self._write_record(job, why)
        self.say(
            f"submitted job {job} ({self.allocation.nodes} nodes x {self.allocation.tasks} "
            f"processes, {next(iter(self.allocation.gpu_request.values()), 'no GPU')})"
        )
        return record

    def _find(self, lost: str | None) -> JobRecord | None:
        kept = self.records.read()
        if kept is not None and kept.job != lost and job_state(kept.job, name=kept.name).active:
            if kept.identity != self.identity:
                raise InputError(
                    f"{self.directory}: job {kept.job} trains this run with other parameters, data "
                    f"or code; let it end, or cancel it: possam jobs cancel {kept.job}"
                )
            return kept
        # A driver that was killed right after sbatch left no record.
        jobs = [job for job in active_jobs(self.job_name) if job.job != lost]
        return self._write_record(jobs[-1].job, "found in the queue") if jobs else None

    def _write_record(self, job: str, why: str) -> JobRecord:
        record = self.records.read()
        if record is None or record.identity != self.identity:
            record = JobRecord(
                scale=self.scale,
                run=self.name,
                seed=self.seed,
                identity=self.identity,
                job=job,
                name=self.job_name,
                source=str(self.source),
            )
        now = datetime.now(tz=UTC).isoformat(timespec="seconds")
        record = record.with_submission(Submission(job=job, time=now, why=why))
        self.records.write(record)
        return record

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Ask SLURM until it answers: without an answer a job could be submitted twice."""
        said = False
        while True:
            try:
                return ask()
            except SlurmUnreachableError as error:
                if not said:
                    self.say(f"{error}; trying again")
                said = True
                time.sleep(5.0)

    def _wait(self, job: str) -> JobState | None:
        """Follow ``job`` to its end: None if the training is complete, else its last state."""
        follower = Follower(self.records, job, say=self.say)
        pause, next_look, shown = _LOOK_S, 0.0, ""
        unknown_since: float | None = None
        while True:
            follower.show()
            if self.records.finish(self.identity):
                follower.show()
                return None
            now = time.monotonic()
            if now >= next_look:
                next_look, pause = now + pause, min(pause * 1.3, _SLOWEST_S)
                state = self._patiently(lambda: job_state(job, name=self.job_name))
                if str(state) != shown:
                    shown, pause = str(state), _LOOK_S
                    self.say(f"job {job}: {shown}")
                certain = state.queued or not (state.active or state.state == "UNKNOWN")
                unknown_since = None if certain else unknown_since or now
                lost = unknown_since is not None and now - unknown_since > _UNKNOWN_S
                if (certain and not state.active) or lost:
                    done = self._last_words(job, state)
                    follower.show()
                    return None if done else state
            time.sleep(_LOOK_S)

    def _last_words(self, job: str, state: JobState) -> bool:
        """Whether the training is complete, once the files of an ended job have arrived."""
        patience = _LATE_S if state.state == "COMPLETED" else _LATE_S / 10
        deadline = time.monotonic() + patience
        while not (done := self.records.finish(self.identity)):
            if self.records.failure(job) is not None or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        return done

    def say_what_goes_on(self) -> None:
        """Print which job an interruption leaves running, and how to end it."""
        kept = self.record or self.records.read()
        if kept is None or kept.identity != self.identity:
            self.say(f"no job is recorded; squeue --name={self.job_name} shows any")
            return
        self.say(
            f"job {kept.job} keeps running without this command; the same command waits for it "
            f"again. To end it: possam jobs cancel {kept.job} (or scancel {kept.job})"
        )
