"""One training of a driver: its identity, its records, and its active job."""

import os
import sys
import time
from collections.abc import Callable, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from possam.launch.records import JobRecord, RunRecords, Submission
from possam.launch.slurm import SlurmUnreachableError, job_state
from possam.params.layout import RUN_LOCK
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json
from possam.runtime.locks import is_held

T = TypeVar("T")


class Member:
    """One training of a driver: its identity, and its records."""

    def __init__(
        self, project: Project, name: str, seed: int | None, *, device: str, accept_code: bool
    ) -> None:
        from possam.stages.train import Training

        training = Training(project, name, seed=seed, package=project.folder.parent / "possam")
        device = training.files.device_of(training.on, device, accept_code=accept_code)
        self.training, self.accept_code = training, accept_code
        self.scale, self.run, self.seed = project.name, name, training.run.seed
        self.trains = training.on(device)
        self.identity = hash_json(self.trains)
        self.directory = training.directory
        self.records = RunRecords(self.directory)

    def say(self, text: str) -> None:
        """Print a line about this training."""
        print(f"{self.run} seed {self.seed}: {text}", file=sys.stderr, flush=True)

    def is_finished(self) -> bool:
        """Whether the training is complete; a line says so."""
        if finished := self.records.finish(self.identity):
            self.say(f"{self.directory}: finished already; nothing to do")
        return finished

    def settle(self) -> bool:
        """Whether the run is finished once it was taken back or accepted, which is done here."""
        from possam.stages.train import only_one

        accepts = self.accept_code and self.training.files.held().get("hash") != self.identity
        if is_held(self.directory / RUN_LOCK) and not accepts:
            return False  # of a lost job, for some time; the next job waits
        with only_one(self.directory):
            return self.training.settle(self.trains, accept_code=self.accept_code)

    def active(self, lost: Set[str]) -> JobRecord | None:
        """The record of this training's active job; None if there is none.

        ``lost``: jobs that are known to have ended.

        Raises:
            InputError: an active job trains this run with another identity.
        """
        kept = self.records.read()
        if kept is None or kept.job in lost or not job_state(kept.job, name=kept.name).active:
            return None
        if kept.identity != self.identity:
            raise InputError(
                f"{self.directory}: job {kept.job} trains this run with other parameters, data "
                f"or code; let it end, or cancel it: possam jobs cancel {kept.job}"
            )
        return kept

    def write_record(
        self, job: str, why: str, *, name: str, source: Path, leader: Path
    ) -> JobRecord:
        """Record that ``job``, called ``name``, trains this run."""
        record = self.records.read()
        if record is None or record.identity != self.identity:
            record = JobRecord(
                scale=self.scale,
                run=self.run,
                seed=self.seed,
                identity=self.identity,
                job=job,
                name=name,
                source=str(source),
            )
        now = datetime.now(tz=UTC).isoformat(timespec="seconds")
        record = record.with_submission(
            Submission(job=job, time=now, why=why),
            name=name,
            leader=os.path.relpath(leader, self.directory),
        )
        self.records.write(record)
        return record


def patiently(member: Member, ask: Callable[[], T]) -> T:
    """Ask SLURM until it answers: without an answer a job could be submitted twice."""
    said = False
    while True:
        try:
            return ask()
        except SlurmUnreachableError as error:
            if not said:
                member.say(f"{error}; trying again")
            said = True
            time.sleep(5.0)
