"""``possam jobs``: trainings that were submitted to SLURM, from their records and from SLURM."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from possam.launch.records import FOLDER, Follower, JobRecord, RunRecords
from possam.launch.slurm import JobState, cancel, job_state, missing_commands, require_slurm
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.reading import scale_names
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.progress import duration

_LOOK_S = 1.0
_ASK_S = 10.0


def show_jobs(action: str, job: str | None, *, scale: str | None, seed: int | None) -> None:
    """``list`` all submitted trainings, or ``tail`` or ``cancel`` the one that ``job`` names.

    Args:
        job: the name of a run or the number of a job; None for ``list``.
        scale, seed: choose among the jobs of a run; None: any.

    Raises:
        InputError: no training or several match, or SLURM's commands are needed and missing.
    """
    if (action == "list") != (job is None):
        raise InputError("tail and cancel take a run or the number of a job, list takes none")
    if job is None:
        _list()
        return
    require_slurm(f"jobs {action}")
    act = {"tail": _tail, "cancel": _cancel}[action]
    act(*_one(job, scale, seed))


def _all() -> Iterator[tuple[RunRecords, JobRecord]]:
    for scale in scale_names():
        runs = Layout(Project(scale)).results / "runs"
        for path in sorted(runs.glob(f"*/seed*/{FOLDER}/job.json")):
            records = RunRecords(path.parents[1])
            if (record := records.read()) is not None:
                yield records, record


def _progress(directory: Path) -> str:
    """Finished steps of a training according to its metrics, and the time that is left."""
    metrics, identity = directory / "metrics.jsonl", directory / "identity.json"
    if not metrics.is_file() or not identity.is_file():
        return "-"
    # The last line may be half written.
    lines = metrics.read_bytes().split(b"\n")[:-1]
    if not lines:
        return "-"
    last = json.loads(lines[-1])
    total = read_json(identity)["identity"]["parameters"]["training"]["iterations"]
    left = "" if last["step"] == total else f", {duration(last['eta_s'])} left"
    return f"{last['step']}/{total} ({100 * last['step'] // total} %){left}"


def _list() -> None:
    """Print one line per training; without SLURM on this machine, only what the records hold."""
    missing = missing_commands("squeue", "sacct")
    rows = [("scale", "run", "seed", "job", "state", "elapsed", "steps")]
    for records, record in _all():
        job, name, folder = record.job, record.name, records.directory
        state = JobState(job, name, "UNKNOWN") if missing else job_state(job, name=name)
        finished = (folder / "run.json").is_file() and not state.active
        steps = (state.elapsed or "-", _progress(folder))
        shown = "finished" if finished else str(state)
        rows.append((record.scale, record.run, str(record.seed), job, shown, *steps))
    if missing:
        print(
            f"{' and '.join(missing)}: not on this machine, so the states of jobs are unknown",
            file=sys.stderr,
        )
    if len(rows) == 1:
        print("no SLURM trainings recorded here")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _one(job: str, scale: str | None, seed: int | None) -> tuple[RunRecords, JobRecord]:
    """The one training named by a run's name or a job's number, or an InputError."""
    everything = list(_all())
    found = [
        (records, record)
        for records, record in everything
        if job in (record.job, record.run)
        and scale in (None, record.scale)
        and seed in (None, record.seed)
    ]
    if len(found) > 1:  # prefer an active one
        found = [one for one in found if job_state(one[1].job, name=one[1].name).active] or found
    if len({record.job for _, record in found}) == 1:  # of runs that are trained together
        return found[0]
    known = (f"{one.run} (job {one.job}, {one.scale})" for _, one in found or everything)
    matches = "several submitted trainings match" if found else "no submitted training matches"
    raise InputError(
        f"{matches} {job!r}; give the number of a job: {', '.join(known) or 'there is none'}"
    )


def _tail(records: RunRecords, record: JobRecord) -> None:
    """Show the output of the job, until it ends or Ctrl-C."""
    follower = Follower(records.of_job(), record.job, say=lambda line: print(line, flush=True))
    ask_at = 0.0
    while True:
        follower.show()
        if time.monotonic() >= ask_at:
            ask_at = time.monotonic() + _ASK_S
            state = job_state(record.job, name=record.name)
            if not state.active:
                follower.show()
                print(f"job {record.job}: {state}", file=sys.stderr)
                return
        time.sleep(_LOOK_S)


def _cancel(_: RunRecords, record: JobRecord) -> None:
    """Cancel the job; its checkpoints stay, and a later job resumes from them."""
    if not (state := job_state(record.job, name=record.name)).active:
        raise InputError(f"job {record.job} has ended already ({state})")
    cancel(record.job)
    others = [one.run for _, one in _all() if one.job == record.job and one.run != record.run]
    runs = " and ".join([record.run, *others])
    print(
        f"job {record.job} of {runs} seed {record.seed} is cancelled; its checkpoints stay",
        file=sys.stderr,
    )
