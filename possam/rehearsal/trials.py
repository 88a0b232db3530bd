"""Trials of a study's work: training steps of every run, one resumed training, one evaluation."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from possam.datasets.format import MANIFEST, ConvertedDataset
from possam.evaluation.efficiency import time_images
from possam.evaluation.evaluate import evaluate_run
from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.text import TextEmbeddings, embed_vocabulary
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.params.layout import Layout
from possam.params.plan import tower_key
from possam.params.project import Project
from possam.params.scale import RunParams
from possam.params.tables import DEFAULT_VARIANT
from possam.rehearsal import drawn
from possam.runtime.files import hash_json
from possam.runtime.findings import OK, PROBLEM, Finding
from possam.runtime.provenance import peak_memory_mib
from possam.runtime.secrets import redact
from possam.stages.models import tower_widths
from possam.training.checkpoint import WeightsMetadata
from possam.training.checkpoint_paths import checkpoints
from possam.training.distributed import LostProcessError, TrainingProcess
from possam.training.live_source import encode_with
from possam.training.loop import train_run
from possam.training.run_files import RunFiles
from possam.training.sources import Source
from possam.training.targets import Batch, Target
from possam.training.trainer import Trainer

CROWDED = 200
"""Segments per image of the step whose memory is measured: a very crowded image of COCO."""

STEPS = 2
"""Training steps of every run: the first compiles and fills caches, the second is timed."""

SPLITS = ("train", "val")
EVALUATED = 4
"""Images that are segmented one at a time, for their rate."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Training steps of one run.

    Attributes:
        also: runs that differ from it only in the training set.
        key: of its rates in ``params/plan.yaml``.
        drawn: what was drawn: towers, ``data``.
        steps_per_s: of the whole job; images_per_s: of one process.
        peak, left: bytes of memory (a GPU's, or of one process) used at most, and left then;
            ``left`` is None on a CPU.
        losses: of the timed step, of a crowded step, and of a step without any segment.
        fault: why it failed; empty if it did not.
    """

    run: str
    also: tuple[str, ...]
    key: str
    drawn: tuple[str, ...] = ()
    steps_per_s: float = 0.0
    images_per_s: float = 0.0
    peak: int = 0
    left: int | None = None
    losses: tuple[float, ...] = ()
    fault: str = ""


@dataclass(frozen=True)
class Workshop:
    """What all trials of one process share; ``folder`` holds drawn data and is seen by all."""

    project: Project
    process: TrainingProcess
    folder: Path
    _open: Any = field(default_factory=lambda: cache(ConvertedDataset.open), repr=False)
    _texts: dict[Any, TextEmbeddings] = field(default_factory=dict, repr=False)

    @property
    def layout(self) -> Layout:
        return Layout(self.project)

    def dataset(self, run: RunParams, *, split: str = "train") -> tuple[ConvertedDataset, bool]:
        """The converted training set of ``run`` (or its ``val``), else a drawn one; which it is."""
        directory = self.layout.dataset(run.train, split)
        if (directory / MANIFEST).is_file():
            found: ConvertedDataset = self._open(directory)
            return found, False
        return drawn.dataset(self.folder / "data", run), True

    def prepare(self) -> None:
        """Have the first process draw the data that others will read; every process calls it."""
        runs = [self.project.run(name) for name in distinct_runs(self.project)]
        self.process.first(
            lambda: [len(self.dataset(run, split=s)[0]) for run in runs for s in SPLITS]
        )

    def embed(self, clip: FrozenClip, data: ConvertedDataset, run: RunParams) -> TextEmbeddings:
        """Its class names, embedded on this process's device; once per data set and templates."""
        clip.to(self.process.device)
        key = (data.directory, run.templates)
        if key not in self._texts:
            text = embed_vocabulary(clip, data.vocabulary, templates=run.templates)
            self._texts[key] = text
        return self._texts[key]


def distinct_runs(project: Project) -> dict[str, tuple[str, ...]]:
    """The first of the runs that differ only in their training set, and the others; by towers."""
    groups: dict[str, list[str]] = {}
    for name, run in project.runs.items():
        own = run.model_dump(mode="json", exclude={"train", "seed"})
        groups.setdefault(hash_json(own), []).append(name)
    found = {names[0]: tuple(names[1:]) for names in groups.values()}
    return dict(sorted(found.items(), key=lambda item: str(project.runs[item[0]].sam)))


def try_run(shop: Workshop, name: str, also: Sequence[str]) -> Trial:
    """Train :data:`STEPS` steps of a run, then one crowded and one without any segment.

    Every process calls it; the result is that of the slowest and fullest of them. What goes wrong
    in all processes alike is the trial's ``fault``.
    """
    run, process = shop.project.run(name), shop.process
    trial = Trial(run=name, also=tuple(also), key=tower_key(shop.project, run.sam))
    try:
        own = _train_steps(shop, trial, run)
    except LostProcessError:
        raise
    except Exception as error:  # whatever it is, the table of the rehearsal has to name it
        own = replace(trial, fault=f"{type(error).__name__}: {redact(error)}")
    if process.device.type == "cuda":
        torch.cuda.empty_cache()
    everyone: list[Trial] = process.collect(own)
    for rank, other in enumerate(everyone):
        if other.fault:
            where = f"process {rank}: " if process.world_size > 1 else ""
            return replace(other, fault=f"{where}{' '.join(other.fault.split())}")
    left = [other.left for other in everyone if other.left is not None]
    return replace(
        everyone[0],
        steps_per_s=min(other.steps_per_s for other in everyone),
        images_per_s=min(other.images_per_s for other in everyone),
        peak=max(other.peak for other in everyone),
        left=min(left, default=None),
    )


def _train_steps(shop: Workshop, trial: Trial, run: RunParams) -> Trial:
    process, training = shop.process, run.training
    trainer, source, towers = _set_up(shop, run)
    if process.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(process.device)
    seconds, losses = 0.0, []
    batches = source.batches(0, STEPS)
    for step in range(STEPS):
        fetching = time.perf_counter()
        own = next(batches)
        computing = time.perf_counter()
        losses = [_step(trainer, step, own)]
        # Cached features are made before a training; its own steps do not wait for the towers.
        began = computing if training.feature_cache else fetching
        seconds = time.perf_counter() - began
    own = list(own)
    for more, count in enumerate((CROWDED, 0), start=STEPS):
        changed = [replace(b, targets=[_segments(t, count) for t in b.targets]) for b in own]
        losses.append(_step(trainer, more, changed))
    return replace(
        trial,
        drawn=tuple(towers),
        steps_per_s=1 / seconds,
        images_per_s=training.batch_size / process.world_size / seconds,
        peak=_peak(process.device),
        left=_left(process.device),
        losses=tuple(losses),
    )


def _set_up(shop: Workshop, run: RunParams) -> tuple[Trainer, Source, list[str]]:
    """A run's trainer, a source of encoded images, and what of it is drawn."""
    data, is_drawn = shop.dataset(run)
    sam, clip, names = drawn.towers(shop.layout, run.sam)
    text = shop.embed(clip, data, run)
    widths = tower_widths(sam=sam, clip=clip)
    precision = shop.project.scale.towers.precision
    source = encode_with(
        sam,
        clip,
        precision=precision,
        padding=run.model.padding,
        dataset=data,
        training=run.training,
        process=shop.process,
        seed=run.seed,
    )
    trainer = Trainer(
        model=build_possam(run.model, **widths, seed=run.seed),
        text=text,
        training=run.training,
        loss=run.loss,
        seed=run.seed,
        process=shop.process,
    )
    return trainer, source, [*names, *(["data"] if is_drawn else [])]


def _step(trainer: Trainer, step: int, batches: Sequence[Batch]) -> float:
    """The loss of one step; a RuntimeError if it is not finite."""
    good, values = trainer.step(step, batches)
    if not good:
        raise RuntimeError(f"step {step}: loss {values[0]}, gradient {values[1]}: not finite")
    return values[0]


def _segments(target: Target, count: int) -> Target:
    """``count`` segments, stripes of the image, in place of the target's own."""
    height, width = target.masks.shape[1:]
    device = target.masks.device
    stripe = torch.arange(height, device=device) * max(count, 1) // height
    masks = stripe[None, :, None] == torch.arange(count, device=device)[:, None, None]
    return Target(
        masks=masks.expand(count, height, width).contiguous(),
        labels=torch.zeros(count, dtype=torch.int64, device=device),
    )


def _peak(device: torch.device) -> int:
    """Bytes: of GPU memory that torch took from the device at most, or of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return round(peak_memory_mib() * 2**20)


def _left(device: torch.device) -> int | None:
    """Bytes of GPU memory that were free when torch held most of it; None on a CPU."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.max_memory_reserved(device)


class Interruption(Exception):
    """Stops a training after its first step where nobody can requeue it."""


class _Interrupted:
    """A source that has its training interrupted after the first step."""

    def __init__(self, source: Source, *, by_signal: bool) -> None:
        self.num_classes, self.sharding = source.num_classes, source.sharding
        self._source, self._by_signal = source, by_signal

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step, batches in enumerate(self._source.batches(start, stop), start=start):
            if step == 1:
                if not self._by_signal:
                    raise Interruption
                # What SLURM sends before the time limit; submitit has the job requeued.
                os.kill(os.getpid(), signal.SIGUSR2)
            yield batches


def try_resume(shop: Workshop, name: str, *, asked: Callable[[], int] | None) -> Finding:
    """Train run ``name`` for a few steps, be interrupted after the first, and go on.

    With ``asked`` (see ``perform``) the interruption is the signal that SLURM sends before the time
    limit, upon which the job ends here and starts again, and finds its checkpoint.
    """
    process, run = shop.process, shop.project.run(name)
    training = run.training.model_copy(
        update={"iterations": 4, "checkpoint_every": 1, "log_every": 1, "milestones": (3,)}
    )
    run = run.model_copy(update={"training": training})
    folder, summary = shop.folder / "resume", None
    files = RunFiles(folder, superseded=shop.folder / "superseded")
    for _ in range(2):
        before = process.first(lambda: next(iter(checkpoints(files.checkpoints)), None))
        trainer, source, _ = _set_up(shop, run)
        if before is None:
            source = _Interrupted(source, by_signal=asked is not None)
        try:
            summary = train_run(
                model=trainer.model,
                source=source,
                text=trainer.text,
                training=training,
                loss=run.loss,
                files=files,
                seed=run.seed,
                metadata=WeightsMetadata(
                    model_kwargs={},
                    identity={"rehearsal": name, "code": ""},
                    frozen={},
                    vocabulary=(),
                ),
                process=process,
                asked=asked,
            )
        except Interruption:
            continue
        break
    if summary is None or before is None:
        text, remedy = (
            "no checkpoint of the interrupted training was found",
            f"can {folder} be written?",
        )
        if summary is not None and asked is not None:
            text = "the signal before the time limit did not have the job requeued"
            remedy = "ask whether this cluster requeues jobs (JobRequeue in slurm.conf)"
        return Finding("resume", PROBLEM, f"{name}: {text}", remedy)
    how = "interrupted" if asked is None else "requeued by SLURM"
    text = f"{name}: {how} after its first step, went on from {before.name}"
    return Finding("resume", OK, f"{text} to step {summary['steps']}")


def try_evaluation(shop: Workshop, name: str, *, scored: bool) -> tuple[Finding, float]:
    """Segment images with an untrained run, one at a time; and score them where ``scored``.

    Only one process calls it. Returns the images per second, too (0.0 after a fault).
    """
    try:
        rate = _evaluate(shop, name, scored=scored)
    except Exception as error:  # see try_run
        text = f"{name}: {type(error).__name__}: {' '.join(redact(error).split())}"
        return Finding("evaluation", PROBLEM, text), 0.0
    what = "segmented and scored" if scored else "segmented"
    text = f"{name}: {EVALUATED} images {what}, {rate:.2f} images per second"
    return Finding("evaluation", OK, text), rate


def _evaluate(shop: Workshop, name: str, *, scored: bool) -> float:
    project, device = shop.project, shop.process.device
    run = project.run(name)
    data, _ = shop.dataset(run, split="val")
    data = replace(data, images=data.images[:EVALUATED])
    sam, clip, _ = drawn.towers(shop.layout, run.sam)
    possam = build_possam(run.model, **tower_widths(sam=sam, clip=clip), seed=run.seed)
    precision = project.scale.towers.precision
    segmenter = Segmenter(sam=sam, clip=clip, possam=possam, precision=precision).to(device).eval()
    inference = project.variants[DEFAULT_VARIANT]
    shared: Mapping[str, Any] = {
        "segmenter": segmenter,
        "dataset": data,
        "text": shop.embed(clip, data, run),
        "seen": [True] * len(data.categories),
    }
    with torch.inference_mode():
        seconds, _ = time_images(**shared, inference=inference, images=EVALUATED, label=name)
    if scored:
        identity = {"run": name, "seed": run.seed, "benchmark": "drawn", "condition": "untrained"}
        with tempfile.TemporaryDirectory() as out:
            evaluate_run(
                **shared,
                variants={DEFAULT_VARIANT: inference},
                evaluation=project.scale.evaluation,
                metrics=("panoptic", "instance", "semantic"),
                out=Path(out),
                identity=identity,
                device=str(device),
            )
    return len(seconds) / float(seconds.sum())
