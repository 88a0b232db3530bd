"""Small files in a training's folder, through which its drivers and jobs find each other."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file, write_json

FOLDER = "slurm"
"""In a run's folder: holds submitit's files, the jobs' logs, and the records below."""

_MEET_S = 300.0
"""How long network storage may take to show one node what another wrote."""

_TAIL = 4096
"""Bytes at the end of an existing log that a follower shows first."""


@dataclass(frozen=True)
class Submission:
    """One ``sbatch``: the job's number, when (UTC, ISO 8601), and why it was needed."""

    job: str
    time: str
    why: str


@dataclass(frozen=True)
class JobRecord:
    """The training's last job, and all jobs that were submitted for the same identity.

    Attributes:
        identity: hash of what the trained weights depend on.
        job: number of the last job, the one to wait for.
        name: the job's name in SLURM; derived from the identities that it trains.
        source: folder of the frozen sources.
        submissions: oldest first.
        leader: folder of the run that holds the job's logs, relative to this training's folder.
    """

    scale: str
    run: str
    seed: int
    identity: str
    job: str
    name: str
    source: str
    submissions: tuple[Submission, ...] = ()
    leader: str = "."

    def with_submission(self, submission: Submission, *, name: str, leader: str) -> "JobRecord":
        """The record with one more job, now the last."""
        submissions = (*self.submissions, submission)
        return replace(self, job=submission.job, submissions=submissions, name=name, leader=leader)


class RunRecords:
    """The records of one training in ``directory`` (a run's folder)."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.folder = directory, directory / FOLDER
        self._job, self._finished = self.folder / "job.json", self.folder / "finished.json"

    def read(self) -> JobRecord | None:
        """The training's record; None if there is no record; an InputError if it is damaged."""
        if not self._job.is_file():
            return None
        values = read_json(self._job)
        try:
            submissions = tuple(Submission(**each) for each in values.pop("submissions"))
            return JobRecord(**values, submissions=submissions)
        except (TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{self._job}: not the record of a job ({error}); make sure with squeue that no "
                "job of this run is left, then remove the file"
            ) from error

    def write(self, record: JobRecord) -> None:
        """Replace the record, atomically."""
        write_json(self._job, asdict(record))

    def of_job(self) -> "RunRecords":
        """The records of the training whose folder holds the last job's logs and failures."""
        record = self.read()
        return self if record is None else RunRecords(self.directory / record.leader)

    def log(self, job: str) -> Path:
        """What the first process of ``job`` writes to standard error (progress, warnings)."""
        return self.folder / f"{job}_0_log.err"

    def output(self, job: str) -> Path:
        """What the first process of ``job`` writes to standard output."""
        return self.folder / f"{job}_0_log.out"

    def _failure(self, job: str, rank: int) -> Path:
        return self.folder / f"{job}_{rank}_failure.json"

    def write_failure(self, job: str, rank: int, *, message: str, final: bool, code: int) -> None:
        """Record why process ``rank`` of ``job`` gave up.

        ``final``: whether another job would fail too. ``code``: exit code for the waiting driver.
        """
        values = {"message": message, "final": final, "code": code, "time": time.time()}
        write_json(self._failure(job, rank), values)

    def forget_failure(self, job: str, rank: int) -> None:
        """Remove the failure of an earlier attempt: a requeued job keeps its number."""
        self._failure(job, rank).unlink(missing_ok=True)

    def failure(self, job: str) -> Mapping[str, Any] | None:
        """Why ``job`` gave up: its first final failure, else its first failure, else None."""
        found = [read_json(path) for path in self.folder.glob(f"{job}_*_failure.json")]
        return min(found, key=lambda values: (not values["final"], values["time"]), default=None)

    @contextlib.contextmanager
    def meeting(self, job: str, attempt: str, *, rank: int) -> Iterator[int]:
        """The port at which the processes of ``job`` meet: rank 0 finds a free one for all.

        ``attempt``: how often the job was put back: a requeued job keeps its number.
        """
        path = self.folder / f"{job}_{attempt}_port.json"
        if rank == 0:
            write_json(path, free_port(20000 + int(job) % 10000))
        try:
            yield self._read_port(path, job)
        finally:
            if rank == 0:
                path.unlink(missing_ok=True)

    def _read_port(self, path: Path, job: str) -> int:
        deadline = time.monotonic() + _MEET_S
        while not path.is_file():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path}: process 0 of job {job} has not written it")
            time.sleep(0.2)
        return int(read_json(path))

    def write_finished(self, job: str) -> None:
        """Keep a copy of ``run.json``, which Snakemake removes after a failure of its own."""
        run = read_json(self.directory / "run.json")
        write_json(self._finished, {"job": job, "identity": run["identity"], "run": run})

    def finish(self, identity: str) -> bool:
        """Whether the training of ``identity`` is complete; if so, puts ``run.json`` in place."""
        target = self.directory / "run.json"
        weights = self.directory / "weights.safetensors"
        if not weights.is_file():
            return False
        if target.is_file() and read_json(target).get("identity") == identity:
            return True
        if not self._finished.is_file():
            return False
        kept = read_json(self._finished)
        if kept["identity"] != identity or sha256_file(weights) != kept["run"]["weights_sha256"]:
            return False
        write_json(target, kept["run"])
        return True


def free_port(first: int) -> int:
    """The first free port of this machine from ``first`` on; of the first hundred, else any.

    Ports from 20000 to 29999 lie below those that systems assign by themselves, and successive jobs
    begin at different ones.
    """
    for port in (*range(first, first + 100), 0):
        with contextlib.suppress(OSError), socket.create_server(("", port)) as probe:
            return int(probe.getsockname()[1])
    raise InputError("no port of this machine is free; end processes that hold them")


class Follower:
    """Shows what the first process of ``job`` prints, in whole lines."""

    def __init__(self, records: RunRecords, job: str, *, say: Callable[[str], None]) -> None:
        self._say, paths = say, (records.output(job), records.log(job))
        sizes = {path: path.stat().st_size if path.is_file() else 0 for path in paths}
        self._at = {path: max(0, size - _TAIL) for path, size in sizes.items()}
        # Reading these files starts in the middle of a line, whose rest is not shown.
        self._skip = {path for path, at in self._at.items() if at}

    def show(self) -> None:
        """Print the lines that are new since the last call."""
        for path in self._at:
            if not path.is_file():
                continue
            with open(path, "rb") as stream:
                stream.seek(self._at[path])
                whole, newline, _ = stream.read().rpartition(b"\n")
            if not newline:
                continue
            self._at[path] += len(whole) + 1
            for line in whole.decode(errors="replace").splitlines()[path in self._skip :]:
                self._say(line)
            self._skip.discard(path)
