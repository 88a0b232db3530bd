"""``possam jobs``: the trainings that were submitted to SLURM, from their records and SLURM's."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from possam.launch.follow import Follower
from possam.launch.records import FOLDER, JobRecord, RunRecords
from possam.launch.slurm import JobState, cancel, job_state, missing_commands, require_slurm
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.progress import duration

Action = Literal["list", "tail", "cancel"]

_LOOK_S = 1.0
_ASK_S = 10.0


def show_jobs(action: Action, job: str | None, *, scale: str | None, seed: int | None) -> None:
    """List all submitted trainings, or ``tail`` or ``cancel`` the one that ``job`` means.

    Args:
        job: a run or the number of a job; None for ``list``.
        scale, seed: which, where a run has jobs of several.

    Raises:
        InputError: no or several trainings are meant, or SLURM is needed and not here.
    """
    if (action == "list") != (job is None):
        raise InputError("tail and cancel take a run or the number of a job, list takes none")
    if job is None:
        _list()
        return
    require_slurm(f"jobs {action}")
    act = {"tail": _tail, "cancel": _cancel}[action]
    act(_one(job, scale=scale, seed=seed))


@dataclass(frozen=True)
class _Submitted:
    """One training that was submitted."""

    records: RunRecords
    record: JobRecord

    def __str__(self) -> str:
        return f"{self.record.run} (job {self.record.job}, {self.record.scale})"

    @property
    def finished(self) -> bool:
        return (self.records.directory / "run.json").is_file()

    def state(self) -> JobState:
        return job_state(self.record.job, name=self.record.name)

    def progress(self) -> str:
        """Steps according to the metrics, and the time that is left."""
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


def _all() -> Iterator[_Submitted]:
    for scale in sorted(path.stem for path in Path("params/scales").glob("*.yaml")):
        runs = Layout(Project(scale)).results / "runs"
        for path in sorted(runs.glob(f"*/seed*/{FOLDER}/job.json")):
            records = RunRecords(path.parents[1])
            if (record := records.read()) is not None:
                yield _Submitted(records, record)


def _list() -> None:
    """Print one line per submitted training: run, seed, job, state, steps.

    Without SLURM on this machine, only what the records hold.
    """
    missing = missing_commands("squeue", "sacct")
    rows = [("scale", "run", "seed", "job", "state", "elapsed", "steps")]
    for each in _all():
        record = each.record
        state = JobState(record.job, record.name, "UNKNOWN") if missing else each.state()
        shown = "finished" if each.finished and not state.active else str(state)
        own = (record.scale, record.run, str(record.seed), record.job)
        rows.append((*own, shown, state.elapsed or "-", each.progress()))
    if missing:
        print(
            f"{' and '.join(missing)}: not on this machine, so no state of a job is known here",
            file=sys.stderr,
        )
    if len(rows) == 1:
        print("no SLURM trainings recorded here")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _one(job: str, *, scale: str | None, seed: int | None) -> _Submitted:
    """The training that a run's name or a job's number means.

    Raises:
        InputError: none, or several.
    """
    everything = list(_all())
    found = [
        each
        for each in everything
        if job in (each.record.job, each.record.run)
        and scale in (None, each.record.scale)
        and seed in (None, each.record.seed)
    ]
    if len(found) > 1:  # an active one is meant
        found = [each for each in found if each.state().active] or found
    if len(found) == 1:
        return found[0]
    choices = ", ".join(map(str, found or everything)) or "there is none"
    matches = "several submitted trainings match" if found else "no submitted training matches"
    raise InputError(f"{matches} {job!r}; give the number of a job: {choices}")


def _tail(training: _Submitted) -> None:
    """Show what its job prints, until it ends or Ctrl-C."""
    job = training.record.job
    follower = Follower(training.records, job, say=lambda line: print(line, flush=True))
    ask_at = 0.0
    while True:
        follower.show()
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + _ASK_S
            state = training.state()
            if not state.active:
                follower.show()
                print(f"job {job}: {state}", file=sys.stderr)
                return
        time.sleep(_LOOK_S)


def _cancel(training: _Submitted) -> None:
    """Cancel its job; the checkpoints stay, and a later job resumes there."""
    record = training.record
    if not (state := training.state()).active:
        raise InputError(f"job {record.job} has ended already ({state})")
    cancel(record.job)
    print(
        f"job {record.job} of {record.run} seed {record.seed} is cancelled; its checkpoints stay",
        file=sys.stderr,
    )
