"""The rehearsal of one scale: what each of its processes does, the record, and what is printed.

The record lies in ``results/[SCALE/]rehearsal/rehearsal.json``. ``possam plan`` reads its rates.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from possam.assets.inventory import gigabytes
from possam.params.layout import Layout
from possam.params.plan import load_plan, tower_key
from possam.params.project import Project
from possam.rehearsal import nodes
from possam.rehearsal.trials import (
    Trial,
    Workshop,
    distinct_runs,
    try_evaluation,
    try_resume,
    try_run,
)
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, write_json
from possam.runtime.findings import OK, PROBLEM, Finding, print_findings
from possam.runtime.gpu_driver import check_device
from possam.runtime.provenance import source_state
from possam.stages.common import set_up_process
from possam.stages.plan import print_plan
from possam.training.distributed import TrainingProcess, join


def folder(layout: Layout) -> Path:
    """Of a rehearsal's files; drawn data and checkpoints lie in ``work`` below it."""
    return layout.rehearsal.parent


def begin(layout: Layout) -> None:
    """Remove what an earlier rehearsal left, its record too, so that nothing old is read."""
    layout.rehearsal.unlink(missing_ok=True)
    shutil.rmtree(folder(layout) / "work", ignore_errors=True)
    (folder(layout) / "work").mkdir(parents=True)


def rehearse(project: Project, *, device: str) -> None:
    """Rehearse on this machine; all processes that a launcher started call it.

    Raises:
        InputError: unknown device, or an asset without which nothing can be drawn.
    """
    with join(check_device(device)) as process:
        set_up_process(project)
        process.first(lambda: begin(Layout(project)))
        perform(project, process)


def perform(
    project: Project, process: TrainingProcess, *, asked: Callable[[], int] | None = None
) -> None:
    """Try everything, and write the record. A requeued job calls it again, and goes on.

    ``asked``: of a job that SLURM requeues when it is interrupted: what its signals ask for, as
    :func:`possam.training.loop.train_run` takes it.
    """
    layout, started = Layout(project), time.monotonic()
    work = folder(layout) / "work"
    shop = Workshop(project, process, work)
    runs = distinct_runs(project)
    first = next(iter(runs))
    examined = work / "nodes.json"

    def examine() -> list[Finding]:
        found = nodes.examine(project, process, work)
        process.first(lambda: write_json(examined, [asdict(one) for one in found]))
        return found

    say = _Speaker(process)
    if process.first(examined.is_file):
        findings = [Finding(**one) for one in read_json(examined)]
    else:
        say("nodes and their file system")
        findings = examine()
    say("data")
    shop.prepare()
    say(f"an interrupted training: {first}")
    findings.append(try_resume(shop, first, asked=asked))
    trials = []
    for number, (name, also) in enumerate(runs.items(), start=1):
        say(f"training steps, {number} of {len(runs)}: {name}")
        trials.append(try_run(shop, name, also))
        if trials[-1].fault:
            say(f"{name}: {trials[-1].fault}")
    evaluations = process.first(lambda: _evaluate(shop, say))
    findings += [*_of_trials(project, trials), *(found for found, _ in evaluations.values())]
    rates = {
        "training": _rates(trials),
        "evaluation": {key: rate for key, (_, rate) in evaluations.items() if rate > 0},
    }

    def record() -> None:
        content = {
            "scale": project.name,
            "unit": load_plan(project)[1].unit,
            "device": process.device.type,
            "processes": process.world_size,
            "git": source_state(),
            "seconds": time.monotonic() - started,
            "passed": all(found.state != PROBLEM for found in findings),
            "findings": [asdict(found) for found in findings],
            "trials": [asdict(trial) for trial in trials],
            "rates": rates,
        }
        write_json(layout.rehearsal, content)
        shutil.rmtree(work)

    process.first(record)


class _Speaker:
    """Prints what is done next, with the time since the start; only the first process prints."""

    def __init__(self, process: TrainingProcess) -> None:
        self._prints, self._started = process.is_first, time.monotonic()

    def __call__(self, what: str) -> None:
        if self._prints:
            print(f"{time.monotonic() - self._started:6.1f} s  {what}", flush=True)


def _evaluate(shop: Workshop, say: _Speaker) -> dict[str, tuple[Finding, float]]:
    """Per tower, what its evaluation gave; the first is scored as well."""
    found: dict[str, tuple[Finding, float]] = {}
    for name, run in shop.project.runs.items():
        key = tower_key(shop.project, run.sam)
        if key not in found:
            say(f"an evaluation: {name}")
            found[key] = try_evaluation(shop, name, scored=not found)
    return found


def _rates(trials: Sequence[Trial]) -> dict[str, float]:
    """Images per second of one process by tower: the mean over the runs that worked."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        if not trial.fault:
            found.setdefault(trial.key, []).append(trial.images_per_s)
    return {key: mean(own) for key, own in found.items()}


def _of_trials(project: Project, trials: Sequence[Trial]) -> list[Finding]:
    faults = [
        Finding("training", PROBLEM, f"{trial.run}: {trial.fault}", _remedy(trial))
        for trial in trials
        if trial.fault
    ]
    good = len(trials) - len(faults)
    text = f"{good} of {len(trials)} distinct runs took all steps, without any segment as well"
    return [Finding("training", OK, text), *faults] if good else faults


def _remedy(trial: Trial) -> str:
    if "out of memory" in trial.fault:
        return "lower training.micro_batch, or set training.activation_checkpointing: true"
    return ""


def report(project: Project) -> int:
    """Print the record of a scale's rehearsal, and the plan with its rates.

    Returns 1 if it found a problem, else 0; an InputError if there is no record.
    """
    path = Layout(project).rehearsal
    if not path.is_file():
        raise InputError(f"{path}: there is no rehearsal of scale {project.name}")
    content: dict[str, Any] = read_json(path)
    print(f"{'run':<26}{'steps/s':>9}{'images/s':>10}{'memory':>10}{'left':>10}  losses, drawn")
    for values in content["trials"]:
        print(_row(values))
        for name in values["also"]:
            print(f"{name:<26}  as {values['run']}")
    print(
        f"steps/s of all {content['processes']} processes, images/s and memory of one; losses of a "
        "step, of a crowded one, and of one without segments\n"
    )
    print_plan(project, [], nodes=1)
    print()
    problems = print_findings([Finding(**one) for one in content["findings"]], scale=project.name)
    return 1 if problems else 0


def _row(values: dict[str, Any]) -> str:
    if values["fault"]:
        return f"{values['run']:<26}  failed: {values['fault']}"
    left = "-" if values["left"] is None else gigabytes(values["left"])
    losses = ", ".join(f"{loss:.1f}" for loss in values["losses"])
    drawn = f"; drawn: {', '.join(values['drawn'])}" if values["drawn"] else ""
    return (
        f"{values['run']:<26}{values['steps_per_s']:>9.2f}{values['images_per_s']:>10.2f}"
        f"{gigabytes(values['peak']):>10}{left:>10}  {losses}{drawn}"
    )
