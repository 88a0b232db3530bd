"""``possam jobs``: the trainings on SLURM, as their folders and SLURM tell."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.launch.follow import Follower
from possam.launch.records import FOLDER, JobRecord, RunRecords
from possam.launch.slurm import JobState, cancel, job_state, require_slurm
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.progress import duration

_LOOK_S = 1.0
_ASK_S = 10.0


@dataclass(frozen=True)
class _Known:
    records: RunRecords
    record: JobRecord

    @property
    def finished(self) -> bool:
        return (self.records.directory / "run.json").is_file()

    def state(self) -> JobState:
        return job_state(self.record.job, name=self.record.name)

    def progress(self) -> str:
        """Steps that the metrics tell of, and what is left."""
        metrics = self.records.directory / "metrics.jsonl"
        identity = self.records.directory / "identity.json"
        if not metrics.is_file() or not identity.is_file():
            return "-"
        last = _last_line(metrics)
        if last is None:
            return "-"
        total = read_json(identity)["identity"]["parameters"]["training"]["iterations"]
        left = "" if last["step"] == total else f", {duration(last['eta_s'])} left"
        return f"{last['step']}/{total} ({100 * last['step'] // total} %){left}"


def _last_line(path: Path) -> dict[str, Any] | None:
    # The last line may be half written.
    lines = path.read_bytes().split(b"\n")[:-1]
    return dict(json.loads(lines[-1])) if lines else None


def _known() -> Iterator[_Known]:
    for scale in sorted(path.stem for path in Path("params/scales").glob("*.yaml")):
        runs = Layout(Project(scale)).results / "runs"
        for path in sorted(runs.glob(f"*/seed*/{FOLDER}/job.json")):
            records = RunRecords(path.parents[1])
            if (record := records.read()) is not None:
                yield _Known(records, record)


def list_jobs() -> None:
    """Print a line for each training that was ever submitted: run, seed, job, state, progress."""
    require_slurm()
    rows = [("scale", "run", "seed", "job", "state", "elapsed", "steps")]
    for known in _known():
        record = known.record
        state = known.state()
        told = "finished" if known.finished and not state.active else str(state)
        own = (record.scale, record.run, str(record.seed), record.job)
        rows.append((*own, told, state.elapsed or "-", known.progress()))
    if len(rows) == 1:
        print("no training was submitted from here")
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _one(job: str, *, scale: str | None, seed: int | None) -> _Known:
    """The training that a run's name or a job's number means.

    Raises:
        InputError: none, or several.
    """
    everything = list(_known())
    found = [
        known
        for known in everything
        if job in (known.record.job, known.record.run)
        and scale in (None, known.record.scale)
        and seed in (None, known.record.seed)
    ]
    if len(found) > 1:  # an active one is meant
        found = [known for known in found if known.state().active] or found
    if len(found) == 1:
        return found[0]
    told = [f"{k.record.run} (job {k.record.job}, {k.record.scale})" for k in found or everything]
    what = "several trainings are meant by" if found else "no submitted training is meant by"
    raise InputError(
        f"jobs: {what} {job!r}; give the number of the job: {', '.join(told) or 'there is none'}"
    )


def tail_job(job: str, *, scale: str | None, seed: int | None) -> None:
    """Show what a job prints until it ends or Ctrl-C."""
    require_slurm()
    known = _one(job, scale=scale, seed=seed)
    follower = Follower(known.records, known.record.job, say=lambda line: print(line, flush=True))
    ask_at = 0.0
    while True:
        follower.show()
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + _ASK_S
            state = known.state()
            if not state.active:
                follower.show()
                print(f"job {known.record.job}: {state}", file=sys.stderr)
                return
        time.sleep(_LOOK_S)


def cancel_job(job: str, *, scale: str | None, seed: int | None) -> None:
    """Cancel the job of a training; its checkpoints stay, and a later one goes on there."""
    require_slurm()
    known = _one(job, scale=scale, seed=seed)
    record = known.record
    if not (state := known.state()).active:
        raise InputError(f"jobs: job {record.job} has ended already ({state})")
    cancel(record.job)
    print(
        f"job {record.job} of {record.run} seed {record.seed} is cancelled; its checkpoints stay",
        file=sys.stderr,
    )
