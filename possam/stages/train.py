"""Stage ``train``: one run of ``params/runs.yaml``, from frozen towers to trained weights."""

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.model.options import CLIP
from possam.params.layout import RUN_LOCK, Layout
from possam.params.project import Project
from possam.params.scale import RunParams
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file, write_json
from possam.runtime.locks import hold
from possam.stages.common import (
    StageRecord,
    asset_file,
    asset_record,
    check_device,
    code_identity,
    frozen_hashes,
    set_up_process,
    tower_hash,
)

if TYPE_CHECKING:
    from possam.datasets.format import ConvertedDataset
    from possam.model.encoders.clip import FrozenClip
    from possam.model.encoders.sam import SamEncoder
    from possam.training.distributed import TrainingProcess
    from possam.training.sources import Source

TRAINING_CODE = (
    "possam.stages.train",
    "possam.training.loop",
    "possam.training.sources",
    "possam.training.live_source",
    "possam.model.possam",
    "possam.model.encoders.text",
)
"""Entry modules of the code that shapes trained weights."""


def _source(
    layout: Layout,
    run: RunParams,
    dataset: "ConvertedDataset",
    *,
    sam: "SamEncoder | None",
    clip: "FrozenClip",
    process: "TrainingProcess",
) -> "Source":
    from possam.model.segmenter import TowerFeatures
    from possam.training.feature_cache import CachedFeatures
    from possam.training.live_source import LiveSource
    from possam.training.memory import hold_in_bfloat16
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
    encode = TowerFeatures(sam=sam, clip=clip, precision=precision)
    if precision == "bf16":
        hold_in_bfloat16(*([sam] if sam is not None else []), clip.model.visual)
    return LiveSource(encode=encode.to(process.device), multiple=encode.multiple, **shared)


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
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
    dataset: "ConvertedDataset",
    *,
    package: Path | None = None,
) -> dict[str, Any]:
    """Everything that the trained weights of ``run`` on its training set ``dataset`` depend on.

    ``package``: folder of the code that trains; default: this one.

    Raises:
        InputError: an asset has not been fetched.
    """
    inputs = {"dataset": dataset.manifest["content"], **frozen_hashes(layout, run.sam)}
    if run.start_from is not None:
        inputs["start_from"] = str(asset_record(layout, run.start_from)["sha256"])
    return {
        "run": name,
        "scale": layout.project.name,
        "parameters": run.model_dump(mode="json"),
        "inputs": inputs,
        # Only the registry imports the parts that the options name, and it is not counted.
        "code": code_identity((*TRAINING_CODE, *run.model.modules), package=package),
    }


def train(project: Project, name: str, *, seed: int | None, device: str) -> None:
    """Train run ``name`` and write ``run.json``; resumes a killed call at its last checkpoint.

    Processes that a launcher started (``possam.training.distributed.join``) train one run together;
    the result does not depend on their number.

    ``seed``: None: the first of the scale's seeds; ``device``: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InputError: bad parameters or inputs, or another process trains this run.
        TrainingError: the loss is no longer finite, or a process is lost.
    """
    from possam.training.distributed import join

    with join(check_device(device)) as process:
        _train(project, name, seed=seed, process=process)


def _train(project: Project, name: str, *, seed: int | None, process: "TrainingProcess") -> None:
    from possam.datasets.format import ConvertedDataset
    from possam.model.possam import build_possam
    from possam.stages.models import embed_names, load_towers, tower_widths
    from possam.training.checkpoint import WeightsMetadata
    from possam.training.loop import train_run
    from possam.training.mask2former import start_from_mask2former

    set_up_process(project)
    layout, run = Layout(project), project.run(name, seed=seed)
    directory = layout.run(name, run.seed)
    started = time.time()
    dataset = ConvertedDataset.open(layout.dataset(run.train, "train"))
    identity = training_identity(layout, name, run, dataset)
    inputs, parameters = identity["inputs"], identity["parameters"]
    initialise = None
    if run.start_from is not None:
        initialise = partial(start_from_mask2former, path=asset_file(layout, run.start_from))
    record = StageRecord("train", parameters, inputs, seed=run.seed, started=started)

    sam, clip = load_towers(layout, run.sam)
    text = embed_names(layout, clip, dataset.vocabulary, templates=run.templates)
    widths = tower_widths(sam=sam, clip=clip)
    model = build_possam(run.model, **widths, seed=run.seed)
    source = _source(layout, run, dataset, sam=sam, clip=clip, process=process)
    with contextlib.ExitStack() as stack:
        process.first(lambda: stack.enter_context(_only_one(directory)))
        summary = train_run(
            model=model,
            source=source,
            text=text,
            training=run.training,
            loss=run.loss,
            directory=directory,
            seed=run.seed,
            metadata=WeightsMetadata(
                model_kwargs={**widths, **run.model.model_dump()},
                identity=identity,
                frozen=frozen_hashes(layout, run.sam),
                vocabulary=dataset.vocabulary,
            ),
            process=process,
            initialise=initialise,
        )
        if not process.is_first:
            return
        record.write(directory)
        write_json(
            directory / "run.json",
            {
                "run": name,
                "scale": project.name,
                "synthetic": project.scale.synthetic,
                "identity": hash_json(identity),
                "state": "finished",
                "sam": run.sam,
                "train": run.train,
                "parameters": parameters,
                "inputs": inputs,
                "vocabulary": [list(names) for names in dataset.vocabulary],
                "weights_sha256": sha256_file(directory / "weights.safetensors"),
                "trainable_parameters": sum(p.numel() for p in model.parameters()),
                "summary": {k: v for k, v in summary.items() if "time" not in k},
            },
        )
