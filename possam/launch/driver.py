"""A driver is the command that finds or submits the job of a training, and waits for the job.

A training has at most one active job, however many drivers wait for it: drivers look and submit
under a lock, and find a job by its name even if the driver that submitted it left no record. SLURM
and submitit requeue a job; a driver submits again only after a job was lost, at most
``max_requeues`` times. Nothing else retries.

A job trains one run, or several that read the same features, behind one pass of the towers. Each
run keeps its own record, so that the driver of any of them finds the job.
"""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from possam.launch.member import Member, patiently
from possam.launch.records import Follower, JobRecord
from possam.launch.slurm import JobState, active_jobs, job_state, require_slurm
from possam.launch.source import freeze
from possam.launch.training_job import TrainingJob, submit
from possam.params.project import Project
from possam.params.slurm import Allocations
from possam.runtime.errors import InputError, JobFailedError
from possam.runtime.files import hash_json
from possam.runtime.gpu_driver import fault_here
from possam.runtime.locks import hold

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


def train_on_slurm(
    scale: str,
    names: Sequence[str],
    *,
    seed: int | None,
    beside: Sequence[str] = (),
    accept_code: bool = False,
) -> None:
    """Train runs ``names`` as one SLURM job; returns when all of them are complete.

    A run whose job is queued or running is waited for and not submitted again. One that is finished
    already, or of other code that is accepted (``accept_code``), is settled here, without a job.

    Args:
        beside: runs that may share the job, so that the towers encode an image once for all. This
            call does not wait for them, and goes on without those that cannot be submitted.

    Raises:
        InputError: bad parameters, runs that cannot be trained together, a refused submission, an
            active job of another identity, or nothing to accept.
        JobFailedError: a job failed for good.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the jobs go on, and lines say so.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        driver = _Driver(scale, names, seed, beside=beside, accept_code=accept_code)
        try:
            driver.drive()
        except KeyboardInterrupt:
            driver.say_what_goes_on()
            raise
    finally:
        signal.signal(signal.SIGTERM, before)


class _Driver:
    """One waiting command, with the parameters and the identities of the frozen sources."""

    def __init__(
        self,
        scale: str,
        names: Sequence[str],
        seed: int | None,
        *,
        beside: Sequence[str],
        accept_code: bool,
    ) -> None:
        from possam.stages.train import check_together

        self.root = Path.cwd()
        names = list(dict.fromkeys(names))
        others = [name for name in dict.fromkeys(beside) if name not in names]
        # First, so that an unknown scale or run leaves no frozen sources behind.
        before = Project(scale)
        check_together({name: before.run(name, seed=seed) for name in (*names, *others)})
        self.source = freeze(root=self.root)
        project = Project(scale, folder=self.source / "params")
        self.allocation = Allocations(folder=project.folder).of(scale, "train")

        def member(name: str) -> Member:
            device = self.allocation.device
            return Member(project, name, seed, device=device, accept_code=accept_code)

        self.members = [member(name) for name in names]
        self.others = [one for name in others if (one := self._unless_refused(name, member))]
        self.lost: set[str] = set()
        self.submitted_here = 0

    def _unless_refused(self, name: str, member: Callable[[str], Member]) -> Member | None:
        try:
            return member(name)
        except InputError as error:
            print(f"{name}: not trained beside the others: {error}", file=sys.stderr, flush=True)
            return None

    def _job_name(self, members: Sequence[Member]) -> str:
        """Unique to these trainings in this project, so that their job can be found by name."""
        first, *more = members
        identities = [member.identity for member in members]
        key = hash_json([str(self.root.resolve()), *identities])[:12]
        runs = first.run + (f"-and-{len(more)}-more" if more else "")
        return f"possam-{first.scale}-{runs}-seed{first.seed}-{key}"

    def drive(self) -> None:
        left = [member for member in self.members if not member.is_finished()]
        if not left:
            return
        require_slurm("--launcher slurm")
        if self.allocation.device == "cuda" and (fault := fault_here()):
            left[0].say(f"on this machine, {fault}; where the nodes have it too, the job refuses")
        why, message = "first", None
        while jobs := self._find_or_submit(left, why):
            left = []
            for record, members in jobs:
                state = self._wait(record, members)
                for member in members:
                    if member.records.finish(member.identity):
                        member.say(f"job {record.job} has trained it: {member.directory}")
                    else:
                        left.append(member)
                if state is None:
                    continue
                self.lost.add(record.job)
                first = members[0]
                message = self._check_end(first, record.job, state, message)
                why = f"job {record.job}: {message or f'ended as {state.state} without a message'}"
                if self.submitted_here > self.allocation.max_requeues:
                    raise JobFailedError(
                        f"{why}; submitted {self.submitted_here} times, which is all that "
                        "max_requeues in params/slurm.yaml allows; the same command resumes at "
                        f"the last checkpoint. Log: {first.records.of_job().log(record.job)}"
                    )
                first.say(f"{why}; it resumes at its last checkpoint")
            if not left:
                return

    def _check_end(
        self, member: Member, job: str, state: JobState, last_message: str | None
    ) -> str | None:
        """The message of a job that ended without a result; raises if no other job can succeed."""
        records = member.records.of_job()
        log = f"Log: {records.log(job)}"
        if state.state in _FINAL:
            raise JobFailedError(f"job {job}: {_FINAL[state.state]}. {log}")
        failure = records.failure(job)
        if failure is None:
            return None
        message = str(failure["message"])
        if failure["code"] == 2:
            raise InputError(f"job {job}: {message}")
        # A single exception may come from a lost process; the same one twice does not.
        if failure["final"] or message == last_message:
            raise JobFailedError(f"job {job}: {message}. {log}")
        return message

    def _find_or_submit(
        self, members: Sequence[Member], why: str
    ) -> list[tuple[JobRecord, list[Member]]]:
        """The active jobs of ``members``, each with those that it trains; submits what lacks one.

        Empty: all are finished. ``why``: the reason for a submission.

        Raises:
            InputError: an active job trains a run with another identity, or SLURM refuses.
        """
        everyone = [*members, *self.others]
        with contextlib.ExitStack() as stack:
            # In one order for all drivers, so that no two of them wait for each other.
            for folder in sorted(member.records.folder for member in everyone):
                stack.enter_context(hold(folder / ".lock", timeout=_LOCK_S))
            found: dict[str, tuple[JobRecord, list[Member]]] = {}
            without = []
            for member in members:
                record = patiently(member, partial(member.active, self.lost))
                if record is not None:
                    member.say(f"job {record.job} is there already; waiting for it")
                    found.setdefault(record.job, (record, []))[1].append(member)
                # Another driver's job may have ended in the meantime.
                elif not (member.is_finished() or member.settle()):
                    without.append(member)
            if without:
                record = self._submit(without, [m for m in self.others if self._joins(m)], why)
                found[record.job] = (record, without)
        return list(found.values())

    def _joins(self, other: Member) -> bool:
        """Whether a run beside those of this driver has no job and no result yet."""
        try:
            if patiently(other, lambda: other.active(self.lost)) is not None:
                return False
            return not (other.is_finished() or other.settle())
        except InputError as error:
            other.say(f"not trained beside the others: {error}")
            return False

    def _submit(self, members: Sequence[Member], others: Sequence[Member], why: str) -> JobRecord:
        """Submit one job for all, or find the one of a driver that was killed after ``sbatch``."""
        everyone, first = [*members, *others], members[0]
        name = self._job_name(everyone)
        queued = patiently(first, lambda: active_jobs(name))
        jobs = [job.job for job in queued if job.job not in self.lost]
        if jobs:
            job, why = jobs[-1], "found in the queue"
            first.say(f"job {job} is there already; waiting for it")
        else:
            job = submit(
                TrainingJob(
                    scale=first.scale,
                    runs=tuple(member.run for member in everyone),
                    seed=first.seed,
                    device=self.allocation.device,
                    world_size=self.allocation.world_size,
                    directories=tuple(member.directory.resolve() for member in everyone),
                    source=self.source,
                ),
                self.allocation,
                name=name,
                root=self.root,
            )
            self.submitted_here += 1
            runs = f"{len(everyone)} runs on " if len(everyone) > 1 else ""
            first.say(
                f"submitted job {job} ({runs}{self.allocation.nodes} nodes x "
                f"{self.allocation.tasks} processes, "
                f"{next(iter(self.allocation.gpu_request.values()), 'no GPU')})"
            )
        records = [
            member.write_record(job, why, name=name, source=self.source, leader=first.directory)
            for member in everyone
        ]
        return records[0]

    def _wait(self, record: JobRecord, members: Sequence[Member]) -> JobState | None:
        """Follow a job to its end: None if all ``members`` are complete, else its last state."""
        job, first = record.job, members[0]
        follower = Follower(first.records.of_job(), job, say=first.say)
        pause, next_look, shown = _LOOK_S, 0.0, ""
        unknown_since: float | None = None
        while True:
            follower.show()
            if _all_finished(members):
                follower.show()
                return None
            now = time.monotonic()
            if now >= next_look:
                next_look, pause = now + pause, min(pause * 1.3, _SLOWEST_S)
                state = patiently(first, lambda: job_state(job, name=record.name))
                if str(state) != shown:
                    shown, pause = str(state), _LOOK_S
                    first.say(f"job {job}: {shown}")
                certain = state.queued or not (state.active or state.state == "UNKNOWN")
                unknown_since = None if certain else unknown_since or now
                lost = unknown_since is not None and now - unknown_since > _UNKNOWN_S
                if (certain and not state.active) or lost:
                    done = self._last_words(job, state, members)
                    follower.show()
                    return None if done else state
            time.sleep(_LOOK_S)

    def _last_words(self, job: str, state: JobState, members: Sequence[Member]) -> bool:
        """Whether all are complete, once the files of an ended job have arrived."""
        patience = _LATE_S if state.state == "COMPLETED" else _LATE_S / 10
        deadline = time.monotonic() + patience
        records = members[0].records.of_job()
        while not (done := _all_finished(members)):
            if records.failure(job) is not None or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_S)
        return done

    def say_what_goes_on(self) -> None:
        """Print which jobs an interruption leaves running, and how to end them."""
        for member in self.members:
            kept = member.records.read()
            if kept is None or kept.identity != member.identity:
                name = self._job_name(self.members)
                member.say(f"no job is recorded; squeue --name={name} shows any")
                continue
            member.say(
                f"job {kept.job} keeps running without this command; the same command waits for it "
                f"again. To end it: possam jobs cancel {kept.job} (or scancel {kept.job})"
            )


def _all_finished(members: Sequence[Member]) -> bool:
    return all(member.records.finish(member.identity) for member in members)
