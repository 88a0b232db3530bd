"""Write the mini world as archives in the upstream layouts of the data sets.

Domain A becomes "synthetic COCO" (panoptic and instance annotations), domain B "synthetic ADE20K"
(scene parsing and instance annotations). Two more test sets have only label maps: the full ADE20K
is the validation scenes of ADE20K (as upstream) under a larger vocabulary, PASCAL Context is new
scenes of both domains. File names are the upstream's, so that unpacking and
conversion are the code that runs on real data; class-name files say that they are synthetic. The
same counts and seed give the same bytes (with the same Pillow and zlib), with any number of
processes.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file, write_json
from possam.runtime.progress import Progress
from possam.synthetic.annotate import (
    AdeFullScene,
    AdeScene,
    CocoScene,
    ContextScene,
    Task,
    ade_full_scene,
    ade_indices,
    ade_scene,
    coco_category_ids,
    coco_scene,
    context_scene,
)
from possam.synthetic.class_files import FILES as CLASS_FILES
from possam.synthetic.class_files import write_class_files
from possam.synthetic.options import WorldOptions
from possam.synthetic.packing import FixedZip, fixed_tar, fixed_zip, tar_add
from possam.synthetic.scenes import SIZE, Split
from possam.synthetic.semantic_archives import ADE_FULL, CONTEXT, VOC, write_ade_full, write_context
from possam.synthetic.vocabulary import CLASSES, domain_names

MANIFEST_NAME = "manifest.json"
_VAL_NUMBERS = 500_000
"""COCO's image ids are unique over train and val; val starts above this."""
_CONTEXT_INDICES = 500_000
"""PASCAL Context's scenes are others than those of the domains' val splits."""
_ADE = "ADEChallengeData2016"
_CHUNK = 16

Made = TypeVar("Made", CocoScene, AdeScene, AdeFullScene, ContextScene)


def _tasks(
    domain: Literal["a", "b"], split: Split, *, count: int, seed: int, first: int
) -> list[Task]:
    return [
        Task(domain=domain, split=split, seed=seed, index=k, number=first + k) for k in range(count)
    ]


def _context_tasks(count: int, seed: int) -> list[Task]:
    """Scenes of the two domains by turns."""
    return [
        Task(
            domain="b" if k % 2 else "a", split="val", seed=seed, index=_CONTEXT_INDICES + k,
            number=k + 1,
        )
        for k in range(count)
    ]  # fmt: skip


def _coco_categories(things_only: bool) -> list[dict[str, Any]]:
    out = []
    for index, number in coco_category_ids().items():
        entry = CLASSES[index]
        if things_only and not entry.is_thing:
            continue
        colour = [37 * number % 256, 91 * number % 256, 173 * number % 256]
        category: dict[str, Any] = {"supercategory": entry.form, "id": number, "name": entry.name}
        if not things_only:
            category |= {"isthing": int(entry.is_thing), "color": colour}
        out.append(category)
    return out


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _info() -> dict[str, Any]:
    return {
        "info": {"description": "Synthetic COCO: a procedural stand-in", "version": "1.0"},
        "licenses": [],
    }


def _coco_split(
    directory: Path, panoptic: FixedZip, instances: FixedZip, scenes: Iterable[CocoScene],
    split: Split,
) -> None:  # fmt: skip
    images, annotations, objects = [], [], []
    inner = io.BytesIO()
    name = f"{split}2017"
    with fixed_zip(directory / f"{name}.zip") as pictures, FixedZip(inner) as maps:
        for scene in scenes:
            stem = f"{scene.number:012d}"
            pictures.add(f"{name}/{stem}.jpg", scene.jpeg)
            maps.add(f"panoptic_{name}/{stem}.png", scene.png)
            images.append(
                {"id": scene.number, "file_name": f"{stem}.jpg", "height": SIZE, "width": SIZE}
            )
            annotations.append(
                {
                    "image_id": scene.number,
                    "file_name": f"{stem}.png",
                    "segments_info": scene.segments,
                }
            )
            objects.extend(scene.instances)
    shared = _info() | {"images": images}
    panoptic.add(
        f"annotations/panoptic_{name}.json",
        _json(shared | {"annotations": annotations, "categories": _coco_categories(False)}),
        compress=True,
    )
    panoptic.add(f"annotations/panoptic_{name}.zip", inner.getvalue())
    numbered = [entry | {"id": k} for k, entry in enumerate(objects, start=1)]
    instances.add(
        f"annotations/instances_{name}.json",
        _json(shared | {"annotations": numbered, "categories": _coco_categories(True)}),
        compress=True,
    )


def _write_coco(
    directory: Path, make: Callable[[Callable[[Task], CocoScene], list[Task]], Iterator[CocoScene]],
    tasks: dict[Split, list[Task]],
) -> None:  # fmt: skip
    with (
        fixed_zip(directory / "panoptic_annotations_trainval2017.zip") as panoptic,
        fixed_zip(directory / "annotations_trainval2017.zip") as instances,
    ):
        for split, todo in tasks.items():
            _coco_split(directory, panoptic, instances, make(coco_scene, todo), split)


def _object_info(pixels: dict[str, Any], counts: dict[str, Any]) -> str:
    """Text of ``objectInfo150.txt``: share of labelled pixels, images of each split, names."""
    total = max(1, sum(int(p[1:].sum()) for p in pixels.values()))
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    for index, number in ade_indices().items():
        share = sum(int(p[number]) for p in pixels.values()) / total
        names = ", ".join(domain_names("b", CLASSES[index]))
        train, val = int(counts["training"][number]), int(counts["validation"][number])
        lines.append(f"{number}\t{share:.4f}\t{train}\t{val}\t{names}")
    return "\n".join(lines) + "\n"


def _write_ade(
    directory: Path, make: Callable[[Callable[[Task], AdeScene], list[Task]], Iterator[AdeScene]],
    tasks: dict[Split, list[Task]],
) -> None:  # fmt: skip
    folders = {"train": "training", "val": "validation"}
    size = len(ade_indices()) + 1
    pixels = {folder: np.zeros(size, np.int64) for folder in folders.values()}
    counts = {folder: np.zeros(size, np.int64) for folder in folders.values()}
    scene_lines: list[str] = []
    with (
        fixed_zip(directory / f"{_ADE}.zip") as archive,
        fixed_tar(directory / "annotations_instance.tar") as tar,
    ):
        for split, todo in tasks.items():
            folder = folders[split]
            for scene in make(ade_scene, todo):
                stem = f"ADE_{split}_{scene.number:08d}"
                archive.add(f"{_ADE}/images/{folder}/{stem}.jpg", scene.jpeg)
                archive.add(f"{_ADE}/annotations/{folder}/{stem}.png", scene.semantic)
                tar_add(tar, f"annotations_instance/{folder}/{stem}.png", scene.instance)
                pixels[folder] += scene.pixels
                counts[folder] += scene.pixels > 0
                scene_lines.append(f"{stem} synthetic")
        archive.add(
            f"{_ADE}/objectInfo150.txt", _object_info(pixels, counts).encode(), compress=True
        )
        archive.add(
            f"{_ADE}/sceneCategories.txt", ("\n".join(scene_lines) + "\n").encode(), compress=True
        )


def _produce(
    function: Callable[[Task], Made], tasks: list[Task], *, pool: ProcessPoolExecutor | None,
    progress: Progress,
) -> Iterator[Made]:  # fmt: skip
    """Results in the order of ``tasks``, whether one process or many make them."""
    made = map(function, tasks) if pool is None else pool.map(function, tasks, chunksize=_CHUNK)
    for result in made:
        yield result
        progress.update()


def write_world(directory: Path, world: WorldOptions, *, workers: int = 1) -> dict[str, Any]:
    """Write all archives and class-name files into ``directory``, and ``manifest.json`` last.

    Args:
        directory: made if it is missing.
        world: seed, and number of images of each split.
        workers: processes that render; with one, none is started.

    Returns:
        The manifest: ``seed``, ``counts`` and ``files`` (name -> ``sha256`` and ``bytes``).

    Raises:
        InputError: no worker.
    """
    if workers < 1:
        raise InputError(f"--workers: {workers}: at least 1 is needed")
    seed, counts = world.seed, world.model_dump(exclude={"seed"})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    with ExitStack() as stack:
        pool = None
        if workers > 1:
            # Spawned, not forked: a fork copies locks that threads of the parent may hold.
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            )
        progress = stack.enter_context(
            Progress(sum(counts.values()), label="synthetic world", unit="images")
        )
        make = partial(_produce, pool=pool, progress=progress)
        _write_coco(directory, make, {
            "train": _tasks("a", "train", count=world.coco_train, seed=seed, first=1),
            "val": _tasks("a", "val", count=world.coco_val, seed=seed, first=_VAL_NUMBERS + 1),
        })  # fmt: skip
        _write_ade(directory, make, {
            "train": _tasks("b", "train", count=world.ade20k_train, seed=seed, first=1),
            "val": _tasks("b", "val", count=world.ade20k_val, seed=seed, first=1),
        })  # fmt: skip
        full = _tasks("b", "val", count=world.ade20k_full_val, seed=seed, first=1)
        write_ade_full(directory, make(ade_full_scene, full))
        context = _context_tasks(world.pascal_context_459_val, seed)
        write_context(directory, make(context_scene, context))
    write_class_files(directory)
    names = (
        "train2017.zip", "val2017.zip", "panoptic_annotations_trainval2017.zip",
        "annotations_trainval2017.zip", f"{_ADE}.zip", "annotations_instance.tar",
        ADE_FULL, VOC, CONTEXT, *CLASS_FILES,
    )  # fmt: skip
    files = {
        name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size}
        for name in names
    }
    manifest = {"seed": seed, "counts": counts, "files": files}
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest
