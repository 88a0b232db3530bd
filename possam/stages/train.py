"""Stage ``train``: runs of ``params/runs.yaml``, from frozen towers to trained weights."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.model.options import CLIP
from possam.params.layout import RUN_LOCK, Layout
from possam.params.project import Project
from possam.params.scale import RunParams
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import hash_json, read_json, write_json
from possam.runtime.gpu_driver import check_device
from possam.runtime.locks import hold
from possam.stages.common import (
    StageRecord,
    asset_file,
    asset_record,
    code_identity,
    frozen_hashes,
    set_up_process,
    tower_hash,
)

if TYPE_CHECKING:
    from possam.datasets.format import ConvertedDataset
    from possam.model.encoders.clip import FrozenClip
    from possam.model.encoders.sam import SamEncoder
    from possam.model.possam import PosSAM
    from possam.training.distributed import TrainingProcess
    from possam.training.run import Run
    from possam.training.sources import Source


def _source(
    layout: Layout,
    run: RunParams,
    dataset: "ConvertedDataset",
    *,
    sam: "SamEncoder | None",
    clip: "FrozenClip",
    process: "TrainingProcess",
) -> "Source":
    from possam.training.feature_cache import CachedFeatures
    from possam.training.live_source import encode_with
    from possam.training.sources import CachedSource

    shared: dict[str, Any] = {
        "dataset": dataset,
        "training": run.training,
        "process": process,
        "seed": run.seed,
    }
    if run.training.feature_cache:
        caches = {
            tower: CachedFeatures.open(
                layout.features(tower, run.train, "train"),
                dataset_content=dataset.manifest["content"],
                tower_hash=tower_hash(layout, tower),
            )
            for tower in run.towers
        }
        own = None if run.sam is None else caches[run.sam]
        return CachedSource(sam=own, clip=caches[CLIP], **shared)

    precision = layout.project.scale.towers.precision
    padding = run.model.padding
    return encode_with(sam, clip, precision=precision, padding=padding, **shared)


@contextlib.contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the lock that lets only one process train in ``directory``; others can see it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(directory / RUN_LOCK, timeout=2.0))
        except TimeoutError as error:
            raise InputError(
                f"{directory}: another process trains this run; wait for it to end, or stop it"
            ) from error
        try:
            yield
        except InputError:
            # Refused before it wrote anything: no folder is left behind.
            if [path.name for path in directory.iterdir()] == [RUN_LOCK]:
                (directory / RUN_LOCK).unlink()
                directory.rmdir()
                with contextlib.suppress(OSError):  # other seeds of the run stay
                    directory.parent.rmdir()
            raise


def training_identity(
    layout: Layout,
    name: str,
    run: RunParams,
    content: str,
    device: str,
    *,
    package: Path | None = None,
) -> dict[str, Any]:
    """Everything that the trained weights of ``run`` depend on.

    ``content``: hash of the converted training set.
    ``device``: kind of the device that computes; code for the other kind does not count.
    ``package``: folder of the code that trains; default: this one.

    Raises:
        InputError: an asset has not been fetched.
    """
    inputs = {"dataset": content, **frozen_hashes(layout, run.sam)}
    if run.start_from is not None:
        inputs["start_from"] = _start_file(layout, run)[1]
    # Only the registry imports the parts that the options name, and it is not counted.
    code = (__name__, *run.model.modules)
    return {
        "run": name,
        "scale": layout.project.name,
        "device": device,
        "parameters": run.model_dump(mode="json"),
        "inputs": inputs,
        "code": code_identity(code, package=package, device=device),
    }


def _start_file(layout: Layout, run: RunParams) -> tuple[Path, str]:
    """The file that a run starts from and its SHA-256; InputError if it is not there yet."""
    assert run.start_from is not None
    if (other := layout.project.starting_run(run)) is None:
        record = asset_record(layout, run.start_from)
        return asset_file(layout, run.start_from), str(record["sha256"])
    folder = layout.run(other, run.seed)
    command = f"possam train {other} --scale {layout.project.name} --seed {run.seed}"
    record = read_json(folder / "run.json", missing=f"start_from: train it first: {command}")
    return folder / "weights.safetensors", str(record["weights_sha256"])


class Training:
    """One training, before anything is loaded: its folder, and the identity that it has there.

    Attributes:
        directory: the run's folder.
        files: what is in it.
        identity: on the device that it is trained on, once that is known.
        vocabulary: names of each class of its training set.
    """

    identity: Mapping[str, Any]

    def __init__(
        self, project: Project, name: str, *, seed: int | None, package: Path | None = None
    ) -> None:
        """``package``: folder of the code that trains; default: this one."""
        from possam.datasets.format import read_manifest
        from possam.training.run_files import RunFiles

        self.layout, self.name, self.run = Layout(project), name, project.run(name, seed=seed)
        self.directory = self.layout.run(name, self.run.seed)
        superseded = self.layout.superseded(name, self.run.seed)
        self.files = RunFiles(self.directory, superseded=superseded)
        # Not the annotations: a hundred megabytes, which only the training itself reads.
        manifest = read_manifest(self.layout.dataset(self.run.train, "train"))
        self.vocabulary: list[list[str]] = manifest["vocabulary"]
        known = (self.layout, name, self.run, manifest["content"])
        self.on = cache(partial(training_identity, *known, package=package))
        """The identity on a kind of device."""

    def settle(self, identity: Mapping[str, Any], *, accept_code: bool) -> bool:
        """Find out whether the run is finished, without a step; if so, ``run.json`` is written.

        A finished or begun run of ``identity`` that was set aside is taken back; with
        ``accept_code``, that in the folder becomes the run of ``identity`` if only its code
        differs. Only one process at a time (:func:`only_one`).

        Raises:
            InputError: there is nothing to accept, or something else differs.
        """
        self.files.take_up(identity, accept_code=accept_code)
        if self.files.held().get("hash") != hash_json(identity):
            return False
        if (summary := self.files.finish()) is None:
            return False
        record, changes = self.directory / "provenance.json", self.files.accepted
        if record.is_file() and read_json(record).get("accepted_code", []) != changes:
            write_json(record, {**read_json(record), "accepted_code": changes})
        elif not record.is_file():  # killed before it was written
            self.record(time.time(), identity).write(self.directory)
        self.describe(identity, summary)
        print(f"{self.files.weights}: finished already; nothing to do", flush=True)
        return True

    def record(self, started: float, identity: Mapping[str, Any]) -> StageRecord:
        """Its provenance; ``started``: as of :func:`time.time`."""
        content = identity["parameters"], identity["inputs"], self.run.seed, started
        return StageRecord("train", *content, self.files.accepted)

    def describe(self, identity: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Write ``run.json`` of the finished run."""
        project = self.layout.project
        write_json(
            self.directory / "run.json",
            {
                "run": self.name,
                "scale": project.name,
                "synthetic": project.scale.synthetic,
                "identity": hash_json(identity),
                "device": identity["device"],
                "code": identity["code"],
                "accepted_code": self.files.accepted,
                "state": "finished",
                "sam": self.run.sam,
                "train": self.run.train,
                "parameters": identity["parameters"],
                "inputs": identity["inputs"],
                "vocabulary": self.vocabulary,
                "weights_sha256": summary["weights_sha256"],
                "trainable_parameters": summary["trainable_parameters"],
                "summary": {k: v for k, v in summary.items() if "time" not in k},
            },
        )


def train(
    project: Project,
    names: Sequence[str],
    *,
    seed: int | None,
    device: str,
    accept_code: bool = False,
    asked: Callable[[], int] | None = None,
) -> None:
    """Train runs and write each ``run.json``; resumes a killed call at the last checkpoints.

    Several runs are trained together: the towers encode an image once for all of them. Each ends
    as it would by itself. Runs that are finished are left out, and one that fails does not stop
    the others.

    Processes that a launcher started (``possam.training.distributed.join``) train together; the
    result does not depend on their number.

    Args:
        names: of runs that read the same images (:func:`check_together`).
        seed: None: the first of the scale's seeds.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        accept_code: go on from runs of other code; their results say so.
        asked: as :func:`possam.training.loop.train_runs` takes it.

    Raises:
        InputError: bad parameters or inputs, runs that cannot be trained together, another process
            trains one of them, or there is nothing to accept.
        TrainingError: the loss of a run is no longer finite, or a process is lost.
    """
    from possam.training.distributed import join

    with join(check_device(device)) as process, contextlib.ExitStack() as stack:
        set_up_process(project)
        check_together({name: project.run(name, seed=seed) for name in names})
        trainings = [Training(project, name, seed=seed) for name in dict.fromkeys(names)]
        process.first(lambda: _lock(trainings, stack))
        left = [t for t in trainings if not _is_settled(t, process, accept_code=accept_code)]
        if left:
            _train(left, process, asked)


def _lock(trainings: Sequence[Training], stack: contextlib.ExitStack) -> None:
    # In one order for all calls, so that no two of them wait for each other.
    for directory in sorted(training.directory for training in trainings):
        stack.enter_context(only_one(directory))


def _is_settled(training: Training, process: "TrainingProcess", *, accept_code: bool) -> bool:
    """Choose the identity of ``training``; returns whether it is finished already."""
    own, files = process.device.type, training.files
    kind = process.first(lambda: files.device_of(training.on, own, accept_code=accept_code))
    training.identity = training.on(kind)
    process.agree("identity of the run", hash_json(training.identity))
    return process.first(lambda: training.settle(training.identity, accept_code=accept_code))


def check_together(runs: Mapping[str, RunParams]) -> None:
    """Raise an InputError unless all ``runs`` (by name) read the same features of the towers."""
    (first, reference), *others = runs.items()
    for name, run in others:
        for field, value in run.reads.items():
            if value != reference.reads[field]:
                raise InputError(
                    f"{first} and {name} cannot be trained together: {field} is "
                    f"{reference.reads[field]} and {value}; train them by two commands"
                )


def _train(
    trainings: Sequence[Training],
    process: "TrainingProcess",
    asked: Callable[[], int] | None,
) -> None:
    from possam.datasets.format import ConvertedDataset
    from possam.stages.models import load_towers
    from possam.training.loop import train_runs

    started = time.time()
    first = trainings[0]
    layout = first.layout
    dataset = ConvertedDataset.open(layout.dataset(first.run.train, "train"))
    sam, clip = load_towers(layout, first.run.sam)
    outcomes = train_runs(
        [prepare(training, process, sam=sam, clip=clip) for training in trainings],
        source=_source(layout, first.run, dataset, sam=sam, clip=clip, process=process),
        process=process,
        asked=asked,
    )
    failures = []
    for training, outcome in zip(trainings, outcomes, strict=True):
        if isinstance(outcome, TrainingError):
            failures.append(str(outcome))
        elif process.is_first:
            training.record(started, training.identity).write(training.directory)
            training.describe(training.identity, outcome)
    if failures:
        raise TrainingError("; ".join(failures))


def prepare(
    training: Training, process: "TrainingProcess", *, sam: "SamEncoder | None", clip: "FrozenClip"
) -> "Run":
    """The run of ``training``, with its names embedded by the first process, on its device."""
    from possam.model.possam import build_possam
    from possam.stages.models import embed_names, tower_widths
    from possam.training.checkpoint import WeightsMetadata
    from possam.training.mask2former import start_from_mask2former
    from possam.training.run import Run
    from possam.training.start import start_from_run

    layout, run, vocabulary = training.layout, training.run, training.vocabulary
    initialise: Callable[[PosSAM], object] | None = None
    if run.start_from is not None:
        path, sha256 = _start_file(layout, run)
        if layout.project.starting_run(run) is None:
            initialise = partial(start_from_mask2former, path=path)
        else:
            frozen = frozen_hashes(layout, run.sam)
            initialise = partial(start_from_run, path=path, sha256=sha256, frozen=frozen)
    widths = tower_widths(sam=sam, clip=clip)
    return Run(
        model=build_possam(run.model, **widths, seed=run.seed),
        text=process.first(
            lambda: embed_names(
                layout, clip.to(process.device), vocabulary, templates=run.templates
            )
        ),
        training=run.training,
        loss=run.loss,
        files=training.files,
        seed=run.seed,
        metadata=WeightsMetadata(
            model_kwargs={**widths, **run.model.model_dump()},
            identity=training.identity,
            frozen=frozen_hashes(layout, run.sam),
            vocabulary=vocabulary,
        ),
        initialise=initialise,
    )
