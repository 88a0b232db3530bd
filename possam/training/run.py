"""One run in training: its start or resume, its steps, its metrics and checkpoints, its end.

Every random number of a step derives from (run seed, micro-batch number), the learning rate is a
function of the step, and a checkpoint holds weights, optimiser, counters and the metrics file as
they were at its step. So a run that is killed and started again ends with the same weights and
metrics (except times), to the bit on a CPU, for any number of processes; on CUDA up to the order
of atomic additions and of NCCL's sums.

Every process runs the same code and takes the same decisions; only rank 0 writes files.
"""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch

from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM
from possam.runtime.errors import TrainingError
from possam.runtime.files import hash_json, sha256_file, write_json
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
from possam.training.options import LossOptions, TrainingOptions
from possam.training.run_files import RunFiles
from possam.training.schedule import learning_rate
from possam.training.targets import Batch
from possam.training.trainer import LOGGED, Trainer

MAX_CONSECUTIVE_SKIPS = 10
"""Non-finite steps in a row that stop the run."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run trains, how, and where its files are.

    Attributes:
        model: freshly initialised; it is trained in place (not touched if the run was finished).
        files: of the run. A run of another identity than ``metadata``'s that is there is set aside,
            and a line says so.
        seed: of the points and of random layers (the source has its own).
        initialise: puts the weights that the run starts from into ``model``. Called once, before
            the first step and before anything is written, but not when a run goes on.
    """

    model: PosSAM
    text: TextEmbeddings
    training: TrainingOptions
    loss: LossOptions
    files: RunFiles
    seed: int
    metadata: WeightsMetadata
    initialise: Callable[[PosSAM], object] | None = None

    def prepare(self, process: TrainingProcess) -> dict[str, Any] | None:
        """Make model and folder ready; returns the summary if the run is finished already.

        Raises:
            InputError: processes that differ, and what ``initialise`` raises.
        """
        identity, files = self.metadata.identity, self.files
        process.agree("identity of the run", hash_json(identity))
        process.first(lambda: files.take_up(identity))
        if self.initialise is not None and not process.first(lambda: files.begun(identity)):
            self.initialise(self.model)
        if process.world_size > 1:
            process.agree("weights at the start", fingerprint(self.model))
        return process.first(self._prepare_files)

    def _prepare_files(self) -> dict[str, Any] | None:
        self.files.prepare(self.metadata.identity)
        summary = self.files.finish()
        if summary is not None:
            print(f"{self.files.weights}: finished already; nothing to do", flush=True)
        return summary


class RunInProgress:
    """A run between its first and its last step, as one of its processes sees it.

    Attributes:
        done: finished steps.
        loss: of the last step.
        memory: peak of a process in bytes, when the metrics were last logged.
        summary: of the finished run; None before.
        failure: why the run cannot go on; None if it can.
    """

    def __init__(self, run: Run, process: TrainingProcess) -> None:
        """Go back to the newest intact checkpoint, if there is one.

        Raises:
            InputError: unreadable checkpoints.
        """
        self._run, self._files, self._process = run, run.files, process
        self.training = run.training
        self.trainer = Trainer(
            model=run.model,
            text=run.text,
            training=run.training,
            loss=run.loss,
            seed=run.seed,
            process=process,
        )
        self.loss, self.memory = float("nan"), 0
        self.summary: dict[str, Any] | None = None
        self.failure: TrainingError | None = None
        self.done, self.counters = self._resume()
        self._metrics: TextIO | None = None
        if process.is_first:
            self._metrics = open(self._files.metrics, "a", encoding="utf-8")  # noqa: SIM115

    @property
    def name(self) -> str:
        """Run and seed, as the folder is named."""
        return f"{self._files.directory.parent.name} {self._files.directory.name}"

    @property
    def goes_on(self) -> bool:
        """Whether steps are left to do."""
        return self.failure is None and self.done < self.training.iterations

    def _resume(self) -> tuple[int, Counters]:
        """Restore the newest intact checkpoint; returns the finished steps, and counters."""
        files, process = self._files, self._process
        loaded: list[Checkpoint] = []
        identities = process.first(lambda: files.identities)

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

        path = process.first(find)
        if path is None:
            return 0, Counters.zero(len(LOGGED))
        checkpoint = loaded[0] if loaded else load_checkpoint(path, identities=identities)
        self.trainer.restore(checkpoint)
        return checkpoint.step, Counters.restore(checkpoint.counters)

    def step(self, batches: Sequence[Batch]) -> None:
        """The next step, on this process's micro-batches."""
        good, values = self.trainer.step(self.done, batches)
        self.counters.add(good, values)
        self.loss = values[0]
        if self._process.is_first and not good:
            print(
                f"step {self.done}: loss {values[0]}, gradient {values[1]}: skipped ({self.name})",
                flush=True,
            )
        self.done += 1

    def keep(self, seconds: float, *, asked: bool, together: int) -> None:
        """Count and log the last step, and write a checkpoint if it is time for one.

        Args:
            seconds: what the step took, with its data, and with the steps of other runs.
            asked: whether a checkpoint is asked for now.
            together: runs that share the step's data.
        """
        training, counters = self.training, self.counters
        counters.seconds += seconds
        counters.together = max(counters.together, together)
        ended = self.done == training.iterations
        if self.done % training.log_every == 0 or ended:
            self._log()
        stuck = counters.consecutive >= MAX_CONSECUTIVE_SKIPS
        due = self.done % training.checkpoint_every == 0
        if self._metrics is not None and (due or ended or stuck or asked):
            self._save(self._metrics)
        if stuck:
            path = checkpoint_path(self._files.checkpoints, self.done)
            self.failure = TrainingError(
                f"{self.name}: step {self.done - 1}: loss or gradient was not finite for "
                f"{counters.consecutive} steps in a row; the state is in {path}. Lower "
                "training.learning_rate or use training.precision: fp32"
            )

    def note(self) -> str:
        """Learning rate, speed and memory, for a line of progress."""
        speed = self.training.batch_size * self.done / self.counters.seconds
        note = f"lr {learning_rate(self.done - 1, self.training):.2e}, {speed:.3g} images/s"
        return note + (f", {self.memory / 2**30:.2f} GiB" if self.memory else "")

    def _log(self) -> None:
        """Write a line of metrics."""
        means = dict(zip(LOGGED, self.counters.means(), strict=True))
        self.memory = max(self._process.gather([_peak_memory(self._process.device)]))
        if self._metrics is None:
            return
        rate = self.counters.seconds / self.done
        values = {
            "step": self.done,
            "time": self.counters.seconds,
            **means,
            "lr": learning_rate(self.done - 1, self.training),
            "skipped": self.counters.skipped,
            "images_per_s": self.training.batch_size / rate,
            "memory_gib": round(self.memory / 2**30, 3),
            "eta_s": rate * (self.training.iterations - self.done),
        }
        self._metrics.write(json.dumps(values, allow_nan=False) + "\n")
        self._metrics.flush()  # for readers that follow the file

    def _save(self, metrics: TextIO) -> None:
        """Write the checkpoint of the finished steps, with the file of ``metrics``."""
        os.fsync(metrics.fileno())
        save_checkpoint(
            self._files.checkpoints,
            step=self.done,
            identity_hash=hash_json(self._run.metadata.identity),
            model=self.trainer.model,
            optimizer=self.trainer.optimizer,
            counters=self.counters.state(),
            metrics=self._files.metrics,
        )

    def finish(self) -> None:
        """Write summary and weights of the run whose steps are done."""
        self.close()
        self.summary = self._process.first(self._finish)

    def _finish(self) -> dict[str, Any]:
        files, metadata, model = self._files, self._run.metadata, self.trainer.model
        staged = files.weights.with_name(f".{files.weights.name}.tmp")
        steps = self.training.iterations
        save_trained(staged, model, metadata, step=steps, accepted=files.accepted)
        lines = files.metrics.read_text(encoding="utf-8").splitlines()
        summary = {
            "identity": hash_json(metadata.identity),
            "steps": steps,
            "images": steps * self.training.batch_size,
            "seconds": self.counters.seconds,
            "skipped": self.counters.skipped,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "device": str(self._process.device),
            "processes": self._process.world_size,
            "together": self.counters.together,
            "weights_sha256": sha256_file(staged),
            "last": json.loads(lines[-1]) if lines else None,
        }
        write_json(files.summary, summary)
        staged.replace(files.weights)  # last: this file says that the run is complete
        return summary

    def close(self) -> None:
        """Close the metrics file."""
        if self._metrics is not None:
            self._metrics.close()


def _peak_memory(device: torch.device) -> int:
    """Peak in bytes: of GPU memory on CUDA, else of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return round(peak_memory_mib() * 2**20)
