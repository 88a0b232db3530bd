"""Write the mini world as archives in the upstream layouts of the data sets.

Domain A becomes "synthetic COCO", domain B "synthetic ADE20K". Two more test sets have label maps
only: the full ADE20K has the validation scenes of ADE20K (as upstream) and a larger vocabulary,
PASCAL Context has new scenes of both domains. File names are upstream's, except that class-name
files are called synthetic. A few images per split, at fixed places, have what is unusual in
upstream's files (``COCO_WARTS``, ``ADE_WARTS``); the others do not depend on them. The same counts
and seed give the same bytes (with the same Pillow and zlib), for any number of processes.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, sha256_file, write_json
from possam.runtime.pools import usable
from possam.runtime.progress import Progress
from possam.synthetic.annotate import (
    ADE_FULL_FOLDER,
    ADE_WARTS,
    COCO_WARTS,
    AdeFullScene,
    AdeScene,
    CocoScene,
    EncodedScene,
    Task,
    ade_full_indices,
    ade_full_scene,
    ade_indices,
    ade_instance_indices,
    ade_scene,
    coco_category_ids,
    coco_scene,
    context_indices,
    context_scene,
)
from possam.synthetic.options import WorldOptions
from possam.synthetic.packing import FixedZip, cut_count, fixed_tar, fixed_zip, tar_add
from possam.synthetic.scenes import SIZE, Split
from possam.synthetic.vocabulary import CLASSES, domain_names

MANIFEST_NAME = "manifest.json"
_VAL_NUMBERS = 500_001
"""First image id of val: COCO's image ids are unique over train and val."""
_CONTEXT_INDICES = 500_000
"""Index of PASCAL Context's first scene: so high that no val split shares its scenes."""
_ADE = "ADEChallengeData2016"
_ADE_FULL = "ADE20K_2021_17_01.zip"
_VOC = "VOCtrainval_03-May-2010.tar"
_CONTEXT = "trainval.tar.gz"
_CHUNK = 16
_COCO_LAST_INDEX = 200
_FIRST_WART = 6
"""Position in the split of the first image with a wart; the others follow it."""
_COUNT_BITS = 4
"""Bits of the number of entries in zips within zips: upstream's has 16, and 118,287 entries."""
_FORK = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(26)
"""What macOS stores beside a file in ``__MACOSX``."""

Made = TypeVar("Made", CocoScene, AdeScene, AdeFullScene, EncodedScene)


def _tasks(
    domain: Literal["a", "b"], split: Split, other: Literal["a", "b"] | None = None, *,
    count: int, seed: int, first: int = 1, skip: int = 0, warts: Sequence[str] = (),
) -> list[Task]:  # fmt: skip
    """Scenes from index ``skip``, numbered from ``first``; every second one of domain ``other``.

    Those from ``_FIRST_WART`` on have one of the ``warts`` each; a duplicate is the first scene.
    """
    domains = (domain, other or domain)
    found = dict(enumerate(warts, start=_FIRST_WART))
    return [
        Task(
            domain=domains[k % 2],
            split=split,
            seed=seed,
            index=skip if found.get(k) == "duplicate" else skip + k,
            number=first + k,
            wart=found.get(k),
        )
        for k in range(count)
    ]


def _coco_split(
    directory: Path, panoptic: FixedZip, instances: FixedZip, scenes: Iterable[CocoScene], name: str
) -> None:
    images, annotations, objects = [], [], []
    inner = io.BytesIO()
    with fixed_zip(directory / f"{name}.zip") as pictures, FixedZip(inner) as maps:
        for scene in scenes:
            stem = f"{scene.number:012d}"
            pictures.add(f"{name}/{stem}.jpg", scene.jpeg)
            maps.add(f"panoptic_{name}/{stem}.png", scene.labels)
            images.append(
                {"id": scene.number, "file_name": f"{stem}.jpg", "height": SIZE, "width": SIZE}
            )
            entry = {"image_id": scene.number, "file_name": f"{stem}.png"}
            annotations.append(entry | {"segments_info": scene.segments})
            objects.extend(scene.instances)
    numbered = [entry | {"id": k} for k, entry in enumerate(objects, start=1)]
    panoptic_classes, thing_classes = [], []
    for index, number in coco_category_ids().items():
        own = CLASSES[index]
        category: dict[str, Any] = {"supercategory": own.form, "id": number, "name": own.name}
        colour = [37 * number % 256, 91 * number % 256, 173 * number % 256]
        panoptic_classes.append(category | {"isthing": int(own.is_thing), "color": colour})
        thing_classes += [category] if own.is_thing else []
    for archive, kind, entries, categories in (
        (panoptic, "panoptic", annotations, panoptic_classes),
        (instances, "instances", numbered, thing_classes),
    ):
        content = {
            "info": {"description": "Synthetic COCO: a procedural stand-in", "version": "1.0"},
            "licenses": [],
            "images": images,
            "annotations": entries,
            "categories": categories,
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        archive.add(f"annotations/{kind}_{name}.json", text, compress=True)
    panoptic.add(f"annotations/panoptic_{name}.zip", cut_count(inner.getvalue(), _COUNT_BITS))
    panoptic.add(f"__MACOSX/annotations/._panoptic_{name}.zip", _FORK)


def _write_coco(directory: Path, scenes: dict[str, Iterable[CocoScene]]) -> None:
    with (
        fixed_zip(directory / "panoptic_annotations_trainval2017.zip") as panoptic,
        fixed_zip(directory / "annotations_trainval2017.zip") as instances,
    ):
        for split, made in scenes.items():
            _coco_split(directory, panoptic, instances, made, f"{split}2017")


def _object_info(pixels: Any, train: Any, val: Any) -> str:
    """Text of ``objectInfo150.txt``: share of labelled pixels, images of each split, names."""
    total = max(1, int(pixels[1:].sum()))
    text = "Idx\tRatio\tTrain\tVal\tName\n"
    for index, number in ade_indices().items():
        names = ", ".join(domain_names("b", CLASSES[index]))
        share = f"{int(pixels[number]) / total:.4f}"
        text += f"{number}\t{share}\t{train[number]}\t{val[number]}\t{names}\n"
    return text


def _write_ade(directory: Path, scenes: dict[str, Iterable[AdeScene]]) -> None:
    folders = {"train": "training", "val": "validation"}
    size = len(ade_indices()) + 1
    pixels, counts = ({split: np.zeros(size, np.int64) for split in folders} for _ in range(2))
    scene_lines: list[str] = []
    with (
        fixed_zip(directory / f"{_ADE}.zip") as archive,
        fixed_tar(directory / "annotations_instance.tar") as tar,
    ):
        for split, made in scenes.items():
            folder = folders[split]
            for scene in made:
                stem = f"ADE_{split}_{scene.number:08d}"
                archive.add(f"{_ADE}/images/{folder}/{stem}{scene.suffix}", scene.jpeg)
                archive.add(f"{_ADE}/annotations/{folder}/{stem}.png", scene.labels)
                tar_add(tar, f"annotations_instance/{folder}/{stem}.png", scene.instance)
                pixels[split] += scene.pixels
                counts[split] += scene.pixels > 0
                scene_lines.append(f"{stem} synthetic\n")
        info = _object_info(sum(pixels.values()), counts["train"], counts["val"])
        archive.add(f"{_ADE}/objectInfo150.txt", info.encode(), compress=True)
        archive.add(f"{_ADE}/sceneCategories.txt", "".join(scene_lines).encode(), compress=True)


def _write_ade_full(directory: Path, scenes: Iterable[AdeFullScene]) -> None:
    """Write the zip of the full release: photograph, label map and objects beside each other."""
    with fixed_zip(directory / _ADE_FULL) as archive:
        for scene in scenes:
            stem = f"{ADE_FULL_FOLDER}/ADE_val_{scene.number:08d}"
            archive.add(f"{stem}{scene.suffix}", scene.jpeg)
            archive.add(f"{stem}_seg.png", scene.labels)
            archive.add(f"{stem}.json", json.dumps(scene.objects).encode(), compress=True)


def _write_context(directory: Path, scenes: Iterable[EncodedScene]) -> None:
    """Write the photographs with their list, and the MATLAB files."""
    stems: list[str] = []
    with (
        fixed_tar(directory / _VOC) as photographs,
        fixed_tar(directory / _CONTEXT, compress=True) as labels,
    ):
        for scene in scenes:
            stem = f"2010_{scene.number:06d}"
            tar_add(photographs, f"VOCdevkit/VOC2010/JPEGImages/{stem}.jpg", scene.jpeg)
            tar_add(labels, f"trainval/{stem}.mat", scene.labels)
            stems.append(stem)
        listing = "".join(f"{stem}\n" for stem in stems).encode()
        tar_add(photographs, "VOCdevkit/VOC2010/ImageSets/Main/val.txt", listing)


def _write_class_files(directory: Path) -> tuple[str, ...]:
    """Write class-name files (one line per index) and class tables; returns the files' names."""
    coco = {number: domain_names("a", CLASSES[k]) for k, number in coco_category_ids().items()}
    ade = {number: domain_names("b", CLASSES[k]) for k, number in ade_indices().items()}
    full = [domain_names("b", CLASSES[k]) for k in ade_full_indices()]
    context = {number: CLASSES[k].names for k, number in context_indices().items()}
    things = ade_instance_indices()
    texts = {
        "synthetic_coco_with_prompt_eng.txt": _name_lines(coco, last=_COCO_LAST_INDEX),
        "synthetic_ade20k_with_prompt_eng.txt": _name_lines(ade, last=len(ade)),
        "synthetic_ade20k_instances.csv": _table(
            ("scene_parse_index", "instance_index", "name"),
            ((n, things.get(k, ""), ", ".join(ade[n])) for k, n in ade_indices().items()),
        ),
        "synthetic_ade20k_full_with_prompt_eng.txt": _name_lines(
            dict(enumerate(full, start=1)), last=len(full)
        ),
        "synthetic_ade20k_full_classes.csv": _table(
            ("train_id", "ade_index", "name"),
            ((k, n, ", ".join(full[k])) for k, n in enumerate(ade_full_indices().values())),
        ),
        "synthetic_pascal_context_with_prompt_eng.txt": _name_lines(context, last=len(context)),
    }
    for name, text in texts.items():
        with atomic_write(directory / name) as stream:
            stream.write(text)
    return tuple(texts)


def _name_lines(entries: Mapping[int, tuple[str, ...]], *, last: int) -> str:
    void = ("invalid_class_id",)
    return "".join(f"{k}:{','.join(entries.get(k, void))}\n" for k in range(last + 1))


def _table(columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([columns, *rows])
    return table.getvalue()


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
        workers: processes that render; 1: this process renders.

    Returns:
        The manifest: ``seed``, ``counts`` and ``files`` (name -> ``sha256`` and ``bytes``).

    Raises:
        InputError: ``workers`` is below 1.
    """
    if workers < 1:
        raise InputError(f"--workers: {workers}: at least 1 is needed")
    seed, counts = world.seed, world.model_dump(exclude={"seed"})
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MANIFEST_NAME).unlink(missing_ok=True)
    with ExitStack() as stack:
        pool = None
        if workers > 1 and usable(workers) > 1:
            # Spawned, not forked: a fork copies locks that threads of the parent may hold.
            pool = stack.enter_context(
                ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
            )
        total = sum(counts.values())
        progress = stack.enter_context(Progress(total, label="synthetic world", unit="images"))
        make = partial(_produce, pool=pool, progress=progress)
        tasks = partial(_tasks, seed=seed)
        train = tasks("a", "train", count=world.coco_train, warts=COCO_WARTS)
        val = tasks("a", "val", count=world.coco_val, first=_VAL_NUMBERS, warts=COCO_WARTS[:-1])
        _write_coco(directory, {"train": make(coco_scene, train), "val": make(coco_scene, val)})
        train = tasks("b", "train", count=world.ade20k_train, warts=ADE_WARTS)
        val = tasks("b", "val", count=world.ade20k_val, warts=ADE_WARTS[:-1])
        _write_ade(directory, {"train": make(ade_scene, train), "val": make(ade_scene, val)})
        full = tasks("b", "val", count=world.ade20k_full_val, warts=ADE_WARTS[:-1])
        _write_ade_full(directory, make(ade_full_scene, full))
        count = world.pascal_context_459_val
        context = tasks("a", "val", "b", count=count, skip=_CONTEXT_INDICES)
        _write_context(directory, make(context_scene, context))
    names = (
        "train2017.zip", "val2017.zip", "panoptic_annotations_trainval2017.zip",
        "annotations_trainval2017.zip", f"{_ADE}.zip", "annotations_instance.tar",
        _ADE_FULL, _VOC, _CONTEXT, *_write_class_files(directory),
    )  # fmt: skip
    files = {
        name: {"sha256": sha256_file(directory / name), "bytes": (directory / name).stat().st_size}
        for name in names
    }
    manifest = {"seed": seed, "counts": counts, "files": files}
    write_json(directory / MANIFEST_NAME, manifest)
    return manifest
