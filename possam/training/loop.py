"""The training loop: exact resume, skipped non-finite steps, metrics as JSON lines.

Every random number of a step derives from (run seed, slice number), the learning rate is a function
of the step, and a checkpoint holds weights, optimiser, counters and the metrics file as they were
at its step. So a run that is killed and called again ends with the same weights and metrics (but
for times), bit for bit on a CPU, for any number of processes; on CUDA up to the order of atomic
additions and of NCCL's sums.

Every process runs the same loop and decides the same; process 0 alone writes files.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import hash_json, read_json, sha256_file, write_json
from possam.runtime.progress import Progress
from possam.runtime.provenance import peak_memory_mib
from possam.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    fingerprint,
    load_checkpoint,
    newest_intact,
    rotate,
    save_checkpoint,
    save_trained,
)
from possam.training.distributed import Place
from possam.training.metrics import MetricsFile, Window, last_line
from possam.training.options import LossOptions, TrainingOptions
from possam.training.run_files import RunFiles
from possam.training.schedule import learning_rate
from possam.training.sources import Source
from possam.training.trainer import LOGGED, Trainer


@dataclass
class _Counters:
    """What the loop carries from step to step beside weights and optimiser state."""

    seconds: float = 0.0
    skipped: int = 0
    consecutive: int = 0
    window: Window = field(default_factory=lambda: Window(LOGGED))

    def state(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "skipped": self.skipped,
            "consecutive": self.consecutive,
            "window": self.window.state(),
        }

    def add(self, finite: bool, values: Sequence[float]) -> None:
        """Count one step with its logged values."""
        if finite:
            self.consecutive = 0
            self.window.add(values)
        else:
            self.skipped += 1
            self.consecutive += 1

    @staticmethod
    def restore(state: Mapping[str, Any]) -> "_Counters":
        return _Counters(
            seconds=state["seconds"],
            skipped=state["skipped"],
            consecutive=state["consecutive"],
            window=Window(LOGGED, state["window"]),
        )


def train_run(
    *,
    model: PosSAM,
    model_kwargs: Mapping[str, Any],
    source: Source,
    text: TextEmbeddings,
    training: TrainingOptions,
    loss: LossOptions,
    directory: Path,
    seed: int,
    identity: Mapping[str, Any],
    frozen: Mapping[str, str],
    vocabulary: Sequence[Sequence[str]],
    place: Place,
    initialise: Callable[[PosSAM], object] | None = None,
    max_consecutive_skips: int = 10,
) -> dict[str, Any]:
    """Train ``model``, or go on where an earlier call stopped, or do nothing if it is finished.

    Args:
        model: freshly initialised; it is trained in place (if the run was finished before, it is
            returned untouched).
        model_kwargs: JSON-able arguments of ``build_possam`` (without ``seed``), stored with the
            weights.
        source: this process's slices by step, over the same classes as ``text``.
        text: embeddings of the training vocabulary.
        training: the recipe.
        loss: weights and point sampling.
        directory: receives ``metrics.jsonl``, ``checkpoints/``, ``identity.json``,
            ``training.json`` (the summary) and, last, ``weights.safetensors``.
        seed: of points and dropout (the source has its own).
        identity: JSON-able; all that the weights depend on. A directory of another identity is
            emptied and trained anew, which is printed.
        frozen: tower name -> hash, stored with the weights.
        vocabulary: names of the training classes, stored with the weights.
        place: this process among those that train the run together; all of them call this.
        initialise: puts the weights that the run starts from into ``model``. Called once, before
            the first step and before anything is written; a run that goes on does not call it.
        max_consecutive_skips: non-finite steps in a row that stop the run.

    Returns:
        The summary: steps, images, seconds, skipped steps, last metrics, hash of the weights.

    Raises:
        ValueError: the source cuts the steps in another way than the recipe.
        InputError: a source of other classes, processes that differ, unreadable checkpoints, and
            what ``initialise`` raises.
        TrainingError: too many non-finite steps in a row (a checkpoint of the state is saved
            first), or another process is lost.
    """
    if source.num_classes != text.num_classes:
        raise InputError(
            f"training data have {source.num_classes} classes, but the class names "
            f"{text.num_classes}; use the class names that the data set was converted with"
        )
    if source.division != place.divide(training):
        raise ValueError(f"{source.division} of the source is not {place.divide(training)}")
    files, identity_hash = RunFiles(Path(directory)), hash_json(identity)
    place.agree("identity of the run", identity_hash)
    if initialise is not None and not place.first(lambda: files.begun(identity)):
        initialise(model)
    if place.world_size > 1:
        place.agree("weights at the start", fingerprint(model))
    finished = place.first(lambda: _prepare(files, identity))
    if finished is not None:
        return finished

    trainer = Trainer(
        model=model,
        text=text,
        training=training,
        loss=loss,
        seed=seed,
        place=place,
    )
    start, counters = _resume(trainer, files, identity_hash)
    last = _train(
        trainer,
        source,
        files,
        start=start,
        counters=counters,
        identity_hash=identity_hash,
        max_consecutive_skips=max_consecutive_skips,
    )

    def finish() -> dict[str, Any]:
        staged = files.weights.with_name(f".{files.weights.name}.tmp")
        save_trained(
            staged,
            model=model,
            model_kwargs=model_kwargs,
            identity=identity,
            frozen=frozen,
            vocabulary=vocabulary,
            step=training.iterations,
        )
        summary = {
            "identity": identity_hash,
            "steps": training.iterations,
            "images": training.iterations * training.batch_size,
            "seconds": counters.seconds,
            "skipped": counters.skipped,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "device": str(place.device),
            "processes": place.world_size,
            "weights_sha256": sha256_file(staged),
            "last": last,
        }
        write_json(files.summary, summary)
        staged.replace(files.weights)  # its presence says that the run is complete
        return summary

    return place.first(finish)


def _prepare(files: RunFiles, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Make the directory ready; the summary if the run is finished already."""
    files.prepare(identity)
    if files.weights.exists() and files.summary.exists():
        print(f"{files.weights}: finished already; nothing to do", flush=True)
        return dict(read_json(files.summary))
    return None


def _resume(trainer: Trainer, files: RunFiles, identity_hash: str) -> tuple[int, _Counters]:
    """Put everything back to the newest intact checkpoint; returns the number of finished steps."""
    loaded: list[Checkpoint] = []

    def find() -> Path | None:
        checkpoint = newest_intact(files.checkpoints, identity_hash=identity_hash)
        if checkpoint is None:
            files.metrics.unlink(missing_ok=True)
            return None
        rotate(files.checkpoints, needed=checkpoint.path)  # the last call may not have come to it
        staged = files.metrics.with_name(f".{files.metrics.name}.tmp")
        shutil.copyfile(checkpoint.metrics, staged)
        staged.replace(files.metrics)
        print(f"{checkpoint.path}: going on after step {checkpoint.step}", flush=True)
        loaded.append(checkpoint)
        return checkpoint.path

    path = trainer.place.first(find)
    if path is None:
        return 0, _Counters()
    checkpoint = loaded[0] if loaded else load_checkpoint(path, identity_hash=identity_hash)
    trainer.restore(checkpoint)
    return checkpoint.step, _Counters.restore(checkpoint.counters)


def _train(
    trainer: Trainer,
    source: Source,
    files: RunFiles,
    *,
    start: int,
    counters: _Counters,
    identity_hash: str,
    max_consecutive_skips: int,
) -> dict[str, Any] | None:
    """Run the steps ``start <= step < iterations``; returns the last metrics line."""
    training, place = trainer.training, trainer.place
    total = training.iterations
    with contextlib.ExitStack() as stack:
        record = None
        if place.is_first:
            record = stack.enter_context(
                _Record(trainer, files, counters=counters, identity_hash=identity_hash, start=start)
            )
        began, before = time.monotonic(), counters.seconds
        for step, batches in enumerate(source.batches(start, total), start=start):
            good, values = trainer.step(step, batches)
            counters.seconds = before + time.monotonic() - began
            done = step + 1
            counters.add(good, values)
            if record and not good:
                print(f"step {step}: loss {values[0]}, gradient {values[1]}: skipped", flush=True)
            if done % training.log_every == 0 or done == total:
                means = counters.window.means()
                memory = max(place.gather([_peak_memory(place.device)]))
                if record:
                    record.log(done, means, memory=memory)
            stuck = counters.consecutive >= max_consecutive_skips
            if record and (stuck or done % training.checkpoint_every == 0 or done == total):
                record.save(done)
            if stuck:
                path = checkpoint_path(files.checkpoints, done)
                raise TrainingError(
                    f"step {step}: loss or gradient was not finite for {counters.consecutive} "
                    f"steps in a row; the state is in {path}. Lower training.learning_rate or use "
                    "training.precision: fp32"
                )
            if record:
                record.progress(step, loss=values[0])
    return last_line(files.metrics) if place.is_first else None


class _Record:
    """What process 0 writes and prints while it trains."""

    def __init__(
        self,
        trainer: Trainer,
        files: RunFiles,
        *,
        counters: _Counters,
        identity_hash: str,
        start: int,
    ) -> None:
        self._trainer, self._files, self._counters = trainer, files, counters
        self._training, self._identity_hash = trainer.training, identity_hash
        self._metrics = MetricsFile(files.metrics)
        self._memory = 0
        self._progress = Progress(
            trainer.training.iterations,
            label=f"train {files.directory.name}",
            unit="steps",
            initial=start,
        )

    def __enter__(self) -> "_Record":
        self._progress.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
        self._metrics.close()

    def log(self, done: int, means: Mapping[str, float | None], *, memory: int) -> None:
        """Write the metrics line of ``done`` steps; ``memory`` in bytes."""
        rate = self._counters.seconds / done
        self._memory = memory
        self._metrics.write(
            {
                "step": done,
                "time": self._counters.seconds,
                **means,
                "lr": learning_rate(done - 1, self._training),
                "skipped": self._counters.skipped,
                "images_per_s": self._training.batch_size / rate,
                "memory_gib": round(memory / 2**30, 3),
                "eta_s": rate * (self._training.iterations - done),
            }
        )

    def save(self, done: int) -> None:
        """Write the checkpoint of ``done`` steps."""
        self._metrics.sync()
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
        """Tell how far it is, how fast, and how long it will take."""
        speed = self._training.batch_size * (step + 1) / self._counters.seconds
        rate = learning_rate(step, self._training)
        note = f"loss {loss:.3f}, lr {rate:.2e}, {speed:.3g} images/s"
        if self._memory:
            note += f", {self._memory / 2**30:.2f} GiB"
        self._progress.update(note=note)


def _peak_memory(device: torch.device) -> int:
    """Bytes: of the GPU's memory where there is one, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(peak_memory_mib() * 2**20)
