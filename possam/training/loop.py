"""The training loop: exact resume, skipped non-finite steps, metrics as JSON lines.

Every random number of a step derives from (run seed, step), the learning rate is a function of the
step, and a checkpoint holds weights, optimiser, counters and the metrics file as they were at its
step. So a run that is killed and called again ends with the same weights and metrics (but for
times), bit for bit on a CPU; on CUDA up to the order of atomic additions.
"""

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from possam.errors import InputError, TrainingError
from possam.files import read_json, sha256_file, write_json
from possam.model.possam import PosSAM
from possam.model.text import TextEmbeddings
from possam.params import LossParams, TrainingParams
from possam.progress import Progress
from possam.training.checkpoint import (
    Checkpoint,
    newest_intact,
    save_checkpoint,
    save_trained,
)
from possam.training.losses import TERMS, Criterion, Losses
from possam.training.metrics import MetricsFile, Window, finite, last_line
from possam.training.run_files import RunFiles
from possam.training.schedule import build_optimizer, learning_rate
from possam.training.sources import Source
from possam.training.targets import Batch, derive_seed

_LOGGED = ("loss", "grad_norm", *TERMS, *(f"{name}_last" for name in TERMS))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that was asked for, or an InputError: there is no silent fallback."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device: {device!r} is not a device; use 'cpu' or 'cuda'") from error
    if found.type not in {"cpu", "cuda"}:
        raise InputError(f"device: {found.type!r} is not supported; use 'cpu' or 'cuda'")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError("device: 'cuda' was asked for, but there is no CUDA device; use 'cpu'")
    return found


@dataclass
class _Counters:
    """What the loop carries from step to step beside weights and optimiser state."""

    seconds: float = 0.0
    skipped: int = 0
    consecutive: int = 0
    window: Window = field(default_factory=lambda: Window(_LOGGED))

    def state(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "skipped": self.skipped,
            "consecutive": self.consecutive,
            "window": self.window.state(),
        }

    @staticmethod
    def restore(state: Mapping[str, Any]) -> "_Counters":
        return _Counters(
            seconds=state["seconds"],
            skipped=state["skipped"],
            consecutive=state["consecutive"],
            window=Window(_LOGGED, state["window"]),
        )


class Trainer:
    """One run on one device: the step itself, and what it needs."""

    def __init__(
        self,
        *,
        model: PosSAM,
        text: TextEmbeddings,
        training: TrainingParams,
        loss: LossParams,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).train()
        self.text = text.to(device)
        self.training, self.seed, self.device = training, seed, device
        self.criterion = Criterion(loss)
        self.optimizer = build_optimizer(model, training)

    def step(self, step: int, batch: Batch) -> tuple[bool, list[float]]:
        """One optimisation step.

        Returns:
            Whether loss and gradient were finite (if not, nothing was changed), and the values of
            the logged names.
        """
        batch = batch.to(self.device)
        rate = learning_rate(step, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

        with self._random_numbers(step):
            losses = self.losses(step, batch)
            self.optimizer.zero_grad(set_to_none=True)
            losses.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)

        terms = [losses.terms[name] for name in TERMS]
        values = torch.stack(
            [losses.total.detach(), norm, *(t.sum() for t in terms), *(t[-1] for t in terms)]
        ).tolist()
        if finite(values):
            self.optimizer.step()
        return finite(values), values

    def losses(self, step: int, batch: Batch) -> Losses:
        """Forward pass and criterion: every decoder output is supervised."""
        bf16 = self.training.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self.model(batch.backbone, batch.clip_features, all_layers=True)
        embeddings = torch.stack([layer.embeddings.float() for layer in output.layers])
        quality = [layer.iou_logits for layer in output.layers if layer.iou_logits is not None]
        generator = torch.Generator(self.device)
        generator.manual_seed(derive_seed("points", self.seed, step))
        return self.criterion(
            mask_logits=[layer.mask_logits for layer in output.layers],
            class_logits=self.model.class_logits(embeddings, self.text),
            iou_logits=torch.stack(quality) if quality else None,
            targets=batch.targets,
            generator=generator,
        )

    @contextlib.contextmanager
    def _random_numbers(self, step: int) -> Iterator[None]:
        """Layers that draw from the global generator (dropout) draw the same at the same step."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(derive_seed("layers", self.seed, step))
            yield

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the weights and the optimiser state of ``checkpoint``."""
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)


def train_run(
    *,
    model: PosSAM,
    model_kwargs: Mapping[str, Any],
    source: Source,
    text: TextEmbeddings,
    training: TrainingParams,
    loss: LossParams,
    directory: Path,
    seed: int,
    identity: Mapping[str, Any],
    frozen: Mapping[str, str],
    vocabulary: Sequence[Sequence[str]],
    device: str | torch.device,
    initialise: Callable[[PosSAM], object] | None = None,
    max_consecutive_skips: int = 10,
) -> dict[str, Any]:
    """Train ``model``, or go on where an earlier call stopped, or do nothing if it is finished.

    Args:
        model: freshly initialised; it is trained in place (if the run was finished before, it is
            returned untouched).
        model_kwargs: JSON-able arguments of ``build_possam`` (without ``seed``), stored with the
            weights.
        source: batches by step, over the same classes as ``text``.
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
        device: ``cpu`` or ``cuda``.
        initialise: puts the weights that the run starts from into ``model``. Called once, before
            the first step and before anything is written; a run that goes on does not call it.
        max_consecutive_skips: non-finite steps in a row that stop the run.

    Returns:
        The summary: steps, images, seconds, skipped steps, last metrics, hash of the weights.

    Raises:
        InputError: no such device, a source of other classes, unreadable checkpoints, and what
            ``initialise`` raises.
        TrainingError: too many non-finite steps in a row; a checkpoint of the state is saved first.
    """
    place = resolve_device(device)
    if source.num_classes != text.num_classes:
        raise InputError(
            f"training data have {source.num_classes} classes, but the class names "
            f"{text.num_classes}; use the class names that the data set was converted with"
        )
    files = RunFiles(Path(directory))
    if initialise is not None and not files.begun(identity):
        initialise(model)
    identity_hash = files.prepare(identity)
    if files.weights.exists() and files.summary.exists():
        print(f"{files.weights}: finished already; nothing to do", flush=True)
        return dict(read_json(files.summary))

    trainer = Trainer(model=model, text=text, training=training, loss=loss, seed=seed, device=place)
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
        "device": str(place),
        "weights_sha256": sha256_file(staged),
        "last": last,
    }
    write_json(files.summary, summary)
    staged.replace(files.weights)  # its presence says that the run is complete
    return summary


def _resume(trainer: Trainer, files: RunFiles, identity_hash: str) -> tuple[int, _Counters]:
    """Put everything back to the newest intact checkpoint; returns the number of finished steps."""
    checkpoint = newest_intact(files.checkpoints, identity_hash=identity_hash)
    if checkpoint is None:
        files.metrics.unlink(missing_ok=True)
        return 0, _Counters()
    trainer.restore(checkpoint)
    staged = files.metrics.with_name(f".{files.metrics.name}.tmp")
    shutil.copyfile(checkpoint.metrics, staged)
    staged.replace(files.metrics)
    print(f"{checkpoint.path}: going on after step {checkpoint.step}", flush=True)
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
    training = trainer.training
    total = training.iterations
    metrics = MetricsFile(files.metrics)

    def save(done: int) -> Path:
        metrics.sync()
        return save_checkpoint(
            files.checkpoints,
            step=done,
            identity_hash=identity_hash,
            model=trainer.model,
            optimizer=trainer.optimizer,
            counters=counters.state(),
            metrics=files.metrics,
        )

    with (
        contextlib.closing(metrics),
        Progress(
            total, label=f"train {files.directory.name}", unit="steps", initial=start
        ) as progress,
    ):
        began, before = time.monotonic(), counters.seconds
        for step, batch in enumerate(source.batches(start, total), start=start):
            good, values = trainer.step(step, batch)
            counters.seconds = before + time.monotonic() - began
            done = step + 1
            if good:
                counters.consecutive = 0
                counters.window.add(values)
            else:
                counters.skipped += 1
                counters.consecutive += 1
                print(f"step {step}: loss {values[0]}, gradient {values[1]}: skipped", flush=True)
            if done % training.log_every == 0 or done == total:
                rate = counters.seconds / done
                metrics.write(
                    {
                        "step": done,
                        "time": counters.seconds,
                        **counters.window.means(),
                        "lr": learning_rate(step, training),
                        "skipped": counters.skipped,
                        "images_per_s": training.batch_size / rate,
                        "eta_s": rate * (total - done),
                    }
                )
            if counters.consecutive >= max_consecutive_skips:
                path = save(done)
                raise TrainingError(
                    f"step {step}: loss or gradient was not finite for {counters.consecutive} "
                    f"steps in a row; the state is in {path}. Lower training.learning_rate or "
                    "use training.precision: fp32"
                )
            if done % training.checkpoint_every == 0 or done == total:
                save(done)
            progress.update(note=f"loss {values[0]:.3f}, lr {learning_rate(step, training):.2e}")
    return last_line(files.metrics)
