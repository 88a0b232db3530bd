"""The training loop: one run, or several that see the same features of the frozen towers.

A step's batches are made once, and each run takes its own step on them: its own model, loss,
optimiser, metrics and checkpoints. So a run that is trained together with others ends with the
weights and metrics that it would have ended with by itself (``run``), and runs that stopped at
different steps go on together.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from possam.runtime.errors import InputError, TrainingError
from possam.runtime.progress import Progress
from possam.training.distributed import TrainingProcess
from possam.training.options import SAVE_AND_END
from possam.training.run import Run, RunInProgress
from possam.training.sharding import BatchSharding
from possam.training.sources import Source


class EndedEarlyError(TrainingError):
    """The training was asked to end; its checkpoint is written, and the same call goes on."""


def train_run(
    *,
    source: Source,
    process: TrainingProcess,
    asked: Callable[[], int] | None = None,
    **run: Any,
) -> dict[str, Any]:
    """Train one run (the fields of :class:`Run`); arguments and errors as :func:`train_runs`.

    Returns:
        The summary: steps, images, seconds, skipped steps, last metrics, hash of the weights.

    Raises:
        TrainingError: too many non-finite steps in a row (a checkpoint of the state is saved).
    """
    (outcome,) = train_runs([Run(**run)], source=source, process=process, asked=asked)
    if isinstance(outcome, TrainingError):
        raise outcome
    return outcome


def train_runs(
    runs: Sequence[Run],
    *,
    source: Source,
    process: TrainingProcess,
    asked: Callable[[], int] | None = None,
) -> list[dict[str, Any] | TrainingError]:
    """Train runs on the same batches, each from where an earlier call stopped, or not at all.

    A run that fails ends there; the others go on.

    Args:
        source: this process's micro-batches by step, over the same classes as the runs' texts.
        process: this process among those that train the runs; all of them call this function.
        asked: called after each step; 0, ``SAVE`` or ``SAVE_AND_END`` of
            :mod:`possam.training.options`. What one process is asked, all do after the same step.

    Returns:
        For each run its summary, as of :func:`train_run`, or why it failed.

    Raises:
        ValueError: the source splits the steps otherwise than the runs and ``process`` do.
        InputError: a source of other classes, processes that differ, unreadable checkpoints, and
            what ``Run.initialise`` raises.
        TrainingError: another process is lost.
        EndedEarlyError: as ``asked``.
    """
    for run in runs:
        if source.num_classes != run.text.num_classes:
            raise InputError(
                f"training data have {source.num_classes} classes, but the class names "
                f"{run.text.num_classes}; use the class names that the data set was converted with"
            )
        sharding = BatchSharding.of(run.training, process)
        if source.sharding != sharding:
            raise ValueError(f"{source.sharding} of the source is not {sharding}")
    finished = [run.prepare(process) for run in runs]
    outcomes: list[dict[str, Any] | TrainingError | None] = list(finished)
    with contextlib.ExitStack() as stack:
        going: dict[int, RunInProgress] = {}
        for number, run in enumerate(runs):
            if finished[number] is None:
                going[number] = RunInProgress(run, process)
                stack.callback(going[number].close)
        if going:
            _run_steps(list(going.values()), source, process, asked)
        for number, one in going.items():
            outcomes[number] = one.failure or one.summary
    return [outcome for outcome in outcomes if outcome is not None]


def _run_steps(
    runs: Sequence[RunInProgress],
    source: Source,
    process: TrainingProcess,
    asked: Callable[[], int] | None,
) -> None:
    """Run the steps that any of ``runs`` lacks."""
    start, total = min(run.done for run in runs), max(run.training.iterations for run in runs)
    with contextlib.ExitStack() as stack:
        progress = None
        if process.is_first:
            label = f"train {runs[0].name}" + (f" and {len(runs) - 1} more" if runs[1:] else "")
            progress = stack.enter_context(
                Progress(total, label=label, unit="steps", initial=start)
            )
        _finish(runs)
        before = time.monotonic()
        for step, batches in enumerate(source.batches(start, total), start=start):
            active = [run for run in runs if run.goes_on and run.done == step]
            for run in active:
                run.step(batches)
            # A signal reaches the processes during different steps, so they agree.
            order = 0 if asked is None else max(process.gather([asked()]))
            now = time.monotonic()
            for run in active:
                run.keep(now - before, asked=order > 0, together=len(active))
            before = now
            if progress:
                losses = "/".join(f"{run.loss:.3f}" for run in active)
                progress.update(note=f"loss {losses}, {active[0].note()}" if active else "")
            _finish(active)
            if not any(run.goes_on for run in runs):
                break
            if order == SAVE_AND_END:
                raise EndedEarlyError(
                    f"ended after step {step + 1} of {total}; its checkpoint is written"
                )


def _finish(runs: Sequence[RunInProgress]) -> None:
    for run in runs:
        if run.summary is None and run.done == run.training.iterations and run.failure is None:
            run.finish()
