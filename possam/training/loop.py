"""The training loop: exact resume, skipped non-finite steps, metrics as JSON lines.

Every random number of a step derives from (run seed, micro-batch number), the learning rate is a
function of the step, and a checkpoint holds weights, optimiser, counters and the metrics file as
they were at its step. So a run that is killed and started again ends with the same weights and
metrics (except times), to the bit on a CPU, for any number of processes; on CUDA up to the order
of atomic additions and of NCCL's sums.

Every process runs the same loop and takes the same decisions; only rank 0 writes files.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import hash_json, sha256_file, write_json
from possam.runtime.progress import Progress
from possam.runtime.provenance import peak_memory_mib
from possam.training.checkpoint import (
    Checkpoint,
    WeightsMetadata,
    fingerprint,
    load_checkpoint,
    newest_intact,
    rotate,
    save_checkpoint,
    save_trained,
)
from possam.training.checkpoint_paths import checkpoint_path
from possam.training.distributed import TrainingProcess
from possam.training.metrics import Counters
from possam.training.options import SAVE_AND_END, LossOptions, TrainingOptions
from possam.training.run_files import RunFiles
from possam.training.schedule import learning_rate
from possam.training.sharding import BatchSharding
from possam.training.sources import Source
from possam.training.trainer import LOGGED, Trainer

MAX_CONSECUTIVE_SKIPS = 10
"""Non-finite steps in a row that stop the run."""


class EndedEarlyError(TrainingError):
    """The training was asked to end; its checkpoint is written, and the same call goes on."""


def train_run(
    *,
    model: PosSAM,
    source: Source,
    text: TextEmbeddings,
    training: TrainingOptions,
    loss: LossOptions,
    files: RunFiles,
    seed: int,
    metadata: WeightsMetadata,
    process: TrainingProcess,
    initialise: Callable[[PosSAM], object] | None = None,
    asked: Callable[[], int] | None = None,
) -> dict[str, Any]:
    """Train ``model``, or go on where an earlier call stopped, or do nothing if it is finished.

    Args:
        model: freshly initialised; it is trained in place (not touched if the run was finished).
        source: this process's micro-batches by step, over the same classes as ``text``.
        files: of the run. A run of another identity than ``metadata``'s that is there is set aside,
            and a line says so.
        seed: of the points and of random layers (the source has its own).
        process: this process among those that train the run; all of them call this function.
        initialise: puts the weights that the run starts from into ``model``. Called once, before
            the first step and before anything is written, but not when a run goes on.
        asked: called after each step; 0, ``SAVE`` or ``SAVE_AND_END`` of
            :mod:`possam.training.options`. What one process is asked, all do after the same step.

    Returns:
        The summary: steps, images, seconds, skipped steps, last metrics, hash of the weights.

    Raises:
        ValueError: the source splits the steps otherwise than ``training`` and ``process`` do.
        InputError: a source of other classes, processes that differ, unreadable checkpoints, and
            what ``initialise`` raises.
        TrainingError: too many non-finite steps in a row (a checkpoint of the state is saved
            first), or another process is lost.
        EndedEarlyError: as ``asked``.
    """
    if source.num_classes != text.num_classes:
        raise InputError(
            f"training data have {source.num_classes} classes, but the class names "
            f"{text.num_classes}; use the class names that the data set was converted with"
        )
    sharding = BatchSharding.of(training, process)
    if source.sharding != sharding:
        raise ValueError(f"{source.sharding} of the source is not {sharding}")
    identity = metadata.identity
    identity_hash = hash_json(identity)
    process.agree("identity of the run", identity_hash)
    process.first(lambda: files.take_up(identity))
    if initialise is not None and not process.first(lambda: files.begun(identity)):
        initialise(model)
    if process.world_size > 1:
        process.agree("weights at the start", fingerprint(model))
    finished = process.first(lambda: _prepare(files, identity))
    if finished is not None:
        return finished

    trainer = Trainer(
        model=model, text=text, training=training, loss=loss, seed=seed, process=process
    )
    start, counters = _resume(trainer, files)
    with contextlib.ExitStack() as stack:
        record = None
        if process.is_first:
            record = _Record(
                trainer, files, counters, stack, identity_hash=identity_hash, start=start
            )
        _run_steps(trainer, source, files, counters, record, start=start, asked=asked)
    return process.first(lambda: _finish(trainer, files, counters, metadata))


def _prepare(files: RunFiles, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make the directory ready; returns the summary if the run is finished already."""
    files.prepare(identity)
    summary = files.finish()
    if summary is not None:
        print(f"{files.weights}: finished already; nothing to do", flush=True)
    return summary


def _resume(trainer: Trainer, files: RunFiles) -> tuple[int, Counters]:
    """Restore the newest intact checkpoint; returns the number of finished steps, and counters."""
    loaded: list[Checkpoint] = []
    identities = trainer.process.first(lambda: files.identities)

    def find() -> Path | None:
        checkpoint = newest_intact(files.checkpoints, identities=identities)
        if checkpoint is None:
            files.metrics.unlink(missing_ok=True)
            return None
        # an earlier call may have been killed before it rotated
        rotate(files.checkpoints, needed=checkpoint.path)
        staged = files.metrics.with_name(f".{files.metrics.name}.tmp")
        shutil.copyfile(checkpoint.metrics, staged)
        staged.replace(files.metrics)
        print(f"{checkpoint.path}: going on after step {checkpoint.step}", flush=True)
        loaded.append(checkpoint)
        return checkpoint.path

    path = trainer.process.first(find)
    if path is None:
        return 0, Counters.zero(len(LOGGED))
    checkpoint = loaded[0] if loaded else load_checkpoint(path, identities=identities)
    trainer.restore(checkpoint)
    return checkpoint.step, Counters.restore(checkpoint.counters)


def _run_steps(
    trainer: Trainer,
    source: Source,
    files: RunFiles,
    counters: Counters,
    record: "_Record | None",
    *,
    start: int,
    asked: Callable[[], int] | None,
) -> None:
    """Run the steps ``start <= step < iterations``; only rank 0 has a ``record``."""
    training, process = trainer.training, trainer.process
    total = training.iterations
    began, before = time.monotonic(), counters.seconds
    for step, batches in enumerate(source.batches(start, total), start=start):
        good, values = trainer.step(step, batches)
        counters.seconds = before + time.monotonic() - began
        counters.add(good, values)
        done = step + 1
        if record and not good:
            print(f"step {step}: loss {values[0]}, gradient {values[1]}: skipped", flush=True)
        if done % training.log_every == 0 or done == total:
            means = dict(zip(LOGGED, counters.means(), strict=True))
            memory = max(process.gather([_peak_memory(process.device)]))
            if record:
                record.log(done, means, memory=memory)
        stuck = counters.consecutive >= MAX_CONSECUTIVE_SKIPS
        # A signal reaches the processes during different steps, so they agree.
        order = 0 if asked is None else max(process.gather([asked()]))
        if record and (stuck or order or done % training.checkpoint_every == 0 or done == total):
            record.save(done)
        if stuck:
            raise TrainingError(
                f"step {step}: loss or gradient was not finite for {counters.consecutive} steps in "
                f"a row; the state is in {checkpoint_path(files.checkpoints, done)}. Lower "
                "training.learning_rate or use training.precision: fp32"
            )
        if order == SAVE_AND_END and done < total:
            raise EndedEarlyError(f"ended after step {done} of {total}; its checkpoint is written")
        if record:
            record.progress(step, loss=values[0])


def _finish(
    trainer: Trainer, files: RunFiles, counters: Counters, metadata: WeightsMetadata
) -> dict[str, Any]:
    """Write the summary and the weights; returns the summary."""
    training, model = trainer.training, trainer.model
    staged = files.weights.with_name(f".{files.weights.name}.tmp")
    save_trained(staged, model, metadata, step=training.iterations, accepted=files.accepted)
    lines = files.metrics.read_text(encoding="utf-8").splitlines()
    summary = {
        "identity": hash_json(metadata.identity),
        "steps": training.iterations,
        "images": training.iterations * training.batch_size,
        "seconds": counters.seconds,
        "skipped": counters.skipped,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": str(trainer.process.device),
        "processes": trainer.process.world_size,
        "weights_sha256": sha256_file(staged),
        "last": json.loads(lines[-1]) if lines else None,
    }
    write_json(files.summary, summary)
    staged.replace(files.weights)  # last: this file says that the run is complete
    return summary


class _Record:
    """What rank 0 writes and prints while it trains."""

    def __init__(
        self,
        trainer: Trainer,
        files: RunFiles,
        counters: Counters,
        stack: contextlib.ExitStack,
        *,
        identity_hash: str,
        start: int,
    ) -> None:
        """``stack`` closes the metrics file and the progress display at the end."""
        self._trainer, self._files, self._counters = trainer, files, counters
        self._training, self._identity_hash = trainer.training, identity_hash
        self._metrics = open(files.metrics, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
        stack.callback(self._metrics.close)
        self._memory = 0
        label = f"train {files.directory.name}"
        self._progress = stack.enter_context(
            Progress(self._training.iterations, label=label, unit="steps", initial=start)
        )

    def log(self, done: int, means: Mapping[str, float | None], *, memory: int) -> None:
        """Write the metrics line of ``done`` steps; ``memory`` in bytes."""
        rate = self._counters.seconds / done
        self._memory = memory
        values = {
            "step": done,
            "time": self._counters.seconds,
            **means,
            "lr": learning_rate(done - 1, self._training),
            "skipped": self._counters.skipped,
            "images_per_s": self._training.batch_size / rate,
            "memory_gib": round(memory / 2**30, 3),
            "eta_s": rate * (self._training.iterations - done),
        }
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")
        self._metrics.flush()  # for readers that follow the file

    def save(self, done: int) -> None:
        """Write the checkpoint of ``done`` steps."""
        os.fsync(self._metrics.fileno())
        save_checkpoint(
            self._files.checkpoints,
            step=done,
            identity_hash=self._identity_hash,
            model=self._trainer.model,
            optimizer=self._trainer.optimizer,
            counters=self._counters.state(),
            metrics=self._files.metrics,
        )

    def progress(self, step: int, *, loss: float) -> None:
        """Show loss, learning rate, speed and memory after ``step``."""
        speed = self._training.batch_size * (step + 1) / self._counters.seconds
        rate = learning_rate(step, self._training)
        note = f"loss {loss:.3f}, lr {rate:.2e}, {speed:.3g} images/s"
        if self._memory:
            note += f", {self._memory / 2**30:.2f} GiB"
        self._progress.update(note=note)


def _peak_memory(device: torch.device) -> int:
    """Peak in bytes: of GPU memory on CUDA, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(peak_memory_mib() * 2**20)
