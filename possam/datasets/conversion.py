"""The part of a conversion that all data sets share: parallel, resumable, atomic.

Each converted image is written to the hidden folder ``.<output>.partial`` beside the output,
followed by a part file; a second run keeps the parts whose sources did not change. When all parts
are there, the JSON files are assembled from them, the result is checked, and the folder is renamed.
A conversion that was interrupted, or whose result was refused, keeps its parts for the next call.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from possam.datasets.format import (
    ANNOTATIONS,
    FORMAT,
    IMAGES,
    INSTANCES,
    MANIFEST,
    PANOPTIC,
    SEMANTIC,
)
from possam.datasets.pixels import areas, encode_ids, encode_semantic, write_bytes, write_png
from possam.datasets.records import UPSTREAM_INSTANCES, Source, Task
from possam.datasets.warts import Tally, find_warts
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, hash_json, read_json, sha256_file, write_json
from possam.runtime.pools import in_chunks
from possam.runtime.progress import Progress
from possam.runtime.reading import reading

CHUNK = 8
"""Images that a worker gets at once."""
_PARTS = "parts"


def convert(
    source: Source,
    *,
    name: str,
    split: str,
    out: Path,
    workers: int,
    code: str = "",
    check: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Convert ``source`` and write the data set ``out``; returns its manifest.

    After an error, what is already converted is kept for the next call.

    Args:
        out: folder to write; replaced if it exists, and not touched if the conversion fails.
        workers: processes; 0 or 1: this process converts. Memory grows with the number of
            processes, not with the number of images.
        code: hash of the code that converts; parts that other code made are not kept.
        check: takes the folder of the finished data set before it is renamed to ``out``; raises
            an InputError to refuse it.

    Raises:
        InputError: no task, one that cannot be converted (the first, in the tasks' order), or the
            result is refused.
        PossamError: a worker died.
    """
    tasks, image_root = source.tasks, source.image_root
    if not tasks:
        raise InputError(f"{out}: no image to convert for {name} {split}; check the paths")
    _check_unique(tasks)
    out = Path(os.path.abspath(out))
    staging = out.with_name(f".{out.name}.partial")
    head = {"format": FORMAT, "name": name, "split": split}
    categories = hash_json([category.to_json() for category in source.categories])
    folders = _folders(source)
    identity = {"categories": categories, "folders": folders, "code": code}
    known = staging / "identity.json"
    if staging.exists() and (not known.exists() or read_json(known) != head | identity):
        shutil.rmtree(staging)
    for folder in (*folders, _PARTS):
        (staging / folder).mkdir(parents=True, exist_ok=True)
    write_json(known, head | identity)
    (staging / MANIFEST).unlink(missing_ok=True)  # of a result that was refused
    job = partial(_convert_chunk, source=replace(source, tasks=()), staging=staging)
    with Progress(len(tasks), label=f"convert {name} {split}", unit="images") as progress:
        for count, _ in in_chunks(job, tasks, workers=workers, chunk=CHUNK, preload=__name__):
            progress.update(count)
    root = IMAGES
    if image_root is not None:
        root = _relative(image_root, out)
    manifest = _assemble(staging, source, head=head, image_root=root)
    for folder in folders:
        expected = {_file_name(task, folder) for task in tasks}
        for path in (staging / folder).iterdir():
            if path.name not in expected:  # left by a conversion of other images
                path.unlink()
    write_json(staging / MANIFEST, manifest)
    if check is not None:
        try:
            check(staging)
        except InputError as error:
            raise InputError(
                f"{error}\n{out}: not written; the next call goes on from {staging}"
            ) from error
    shutil.rmtree(staging / _PARTS)
    known.unlink()
    _publish(staging, out)
    return manifest


def _relative(image_root: Path, out: Path) -> str:
    """``image_root`` as seen from ``out``, by the names in the project where they lead there.

    A folder linked from a data root keeps its link, so that the project can be moved.
    """
    place = os.path.join(os.path.realpath(out.parent), out.name)
    named = os.path.relpath(os.path.abspath(image_root), out)
    there = os.path.normpath(os.path.join(place, named))
    if os.path.exists(there) and os.path.samefile(there, image_root):
        return named
    return os.path.relpath(os.path.realpath(image_root), place)


def _check_unique(tasks: Sequence[Task]) -> None:
    """InputError if two images would share a PNG: an annotation, or the name of a converted one."""
    users: dict[str, Task] = {}
    for task in tasks:
        for name in (task.png_name, *map(str, task.sources)):
            if (other := users.setdefault(name, task)) is not task:
                raise InputError(
                    f"{task.image}: shares {name} with {other.image}; photographs must differ in "
                    "more than their suffixes, and each needs its own annotation: rename one, or "
                    "leave it out"
                )


def _folders(source: Source) -> list[str]:
    """The data set's folders with one file per image."""
    return [PANOPTIC, SEMANTIC] if source.image_root is not None else [PANOPTIC, SEMANTIC, IMAGES]


def _image_name(task: Task, root: Path | None) -> str:
    """The photograph's path below the data set's image root."""
    return task.image.name if root is None else task.image.relative_to(root).as_posix()


def _file_name(task: Task, folder: str) -> str:
    """Name of an image's file in one of the data set's folders."""
    return task.image.name if folder == IMAGES else task.png_name


def _publish(staging: Path, out: Path) -> None:
    """Rename the folder ``staging`` to ``out``, its sibling, which is replaced if it exists."""
    retired = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.old")
    if replaced := out.exists():
        os.replace(out, retired)
    os.replace(staging, out)
    if replaced:
        shutil.rmtree(retired)


def _convert_chunk(tasks: Sequence[Task], *, source: Source, staging: Path) -> None:
    for task in tasks:
        signature = _signature(task)
        if not _is_done(staging, task, signature, _folders(source)):
            _convert_one(task, signature, source, staging)


def _part_path(staging: Path, task: Task) -> Path:
    return staging / _PARTS / f"{task.png_name}.json"


def _signature(task: Task) -> str:
    """Hash of what the converted image depends on: its files (size, time) and its payload."""
    stats = []
    for path in (task.image, *task.sources):
        with reading(path, missing="unpack its archive again"):
            status = path.stat()
        stats.append([str(path), status.st_size, status.st_mtime_ns])
    return hash_json([task.id, stats, task.payload])


def _is_done(staging: Path, task: Task, signature: str, folders: Sequence[str]) -> bool:
    part_path = _part_path(staging, task)
    part = read_json(part_path) if part_path.exists() else {}
    files = {folder: staging / folder / _file_name(task, folder) for folder in folders}
    return part.get("signature") == signature and all(
        path.exists() and sha256_file(path) == part[folder] for folder, path in files.items()
    )


def _convert_one(task: Task, signature: str, source: Source, staging: Path) -> None:
    result = source.converter(task)
    if result.panoptic_png is not None:
        panoptic = write_bytes(staging / PANOPTIC / task.png_name, result.panoptic_png)
    else:
        panoptic = write_png(staging / PANOPTIC / task.png_name, encode_ids(result.ids))
    image = result.image
    if isinstance(image, bytes):
        image = write_bytes(staging / IMAGES / task.image.name, image)
    pixels = encode_semantic(result.semantic, len(source.categories))
    semantic = write_png(staging / SEMANTIC / task.png_name, pixels)
    part: dict[str, Any] = {
        "signature": signature,
        "width": result.ids.shape[1],
        "height": result.ids.shape[0],
        IMAGES: image,
        PANOPTIC: panoptic,
        SEMANTIC: semantic,
        "pixels": {str(label): count for label, count in areas(result.semantic).items()},
        "segments": [segment.to_json() for segment in result.segments],
        "instances": result.instances,
    }
    annotated = source.instances.startswith(UPSTREAM_INSTANCES)
    part["warts"] = find_warts(task.image, part, instances=annotated) | task.warts
    write_bytes(_part_path(staging, task), json.dumps(part).encode())


def _write_json_stream(path: Path, head: dict[str, Any], items: Iterable[Any]) -> str:
    """Write ``head`` and ``annotations: [items]`` as JSON, item by item; returns the SHA-256."""
    with atomic_write(path) as stream:
        stream.write("{\n")
        for name, value in head.items():
            stream.write(f"{json.dumps(name)}: {json.dumps(value)},\n")
        stream.write('"annotations": [')
        for number, item in enumerate(items):
            stream.write((",\n" if number else "\n") + json.dumps(item, allow_nan=False))
        stream.write("\n]\n}\n")
    return sha256_file(path)


def _assemble(
    staging: Path, source: Source, *, head: dict[str, Any], image_root: str
) -> dict[str, Any]:
    """Write the annotation and instance JSON files from the parts; returns the manifest."""
    tasks, instances = source.tasks, source.instances
    size = len(source.categories)
    histogram = {key: [0] * size for key in ("pixels", "segments", "instances")}
    void_pixels = crowd = 0
    hashes = {key: hashlib.sha256() for key in (PANOPTIC, SEMANTIC, IMAGES)}
    images: list[dict[str, Any]] = []
    warts = Tally()

    def annotations() -> Iterator[dict[str, Any]]:
        nonlocal void_pixels, crowd
        for task in tasks:
            part = read_json(_part_path(staging, task))
            for key, digest in hashes.items():
                digest.update(f"{task.png_name} {part[key]}\n".encode())
            for label, count in part["pixels"].items():
                if int(label) < 0:
                    void_pixels += count
                else:
                    histogram["pixels"][int(label)] += count
            for segment in part["segments"]:
                histogram["segments"][segment["category_id"]] += 1
                crowd += segment["iscrowd"]
            entry = {"image_id": task.id, "file_name": task.png_name}
            yield {**entry, "segments_info": part["segments"]}

    def instance_annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for task in tasks:
            for entry in read_json(_part_path(staging, task))["instances"]:
                number += 1  # pycocotools takes an annotation id of 0 for "no match"
                histogram["instances"][entry["category_id"]] += 1
                yield {"id": number, "image_id": task.id, **entry}

    for task in tasks:
        part = read_json(_part_path(staging, task))
        entry = {"id": task.id, "file_name": _image_name(task, source.image_root)}
        if task.upstream_id:
            entry["upstream_id"] = task.upstream_id
        images.append({**entry, "width": part["width"], "height": part["height"]})
        warts.add(task.id, part)
    classes = [category.to_json() for category in source.categories]
    things = [entry for entry in classes if entry["isthing"]]
    top = {"categories": classes, "images": images}
    small = {"info": {}, "categories": things, "images": images}
    sha256 = {
        "annotations": _write_json_stream(staging / ANNOTATIONS, top, annotations()),
        "instances": _write_json_stream(staging / INSTANCES, small, instance_annotations()),
    }
    sha256 |= {key: digest.hexdigest() for key, digest in hashes.items()}
    segments = sum(histogram["segments"])
    stuff = sum(histogram["segments"][c.index] for c in source.categories if not c.is_thing)
    return {
        **head,
        "image_root": image_root,
        "num_classes": size,
        "vocabulary": [list(category.names) for category in source.categories],
        "counts": {
            "images": len(tasks),
            "segments": segments,
            "things": segments - stuff,
            "stuff": stuff,
            "crowd": crowd,
            "instances": sum(histogram["instances"]),
        },
        "histogram": {**histogram, "void_pixels": void_pixels},
        "warts": warts.to_json(source.stray),
        "instances": instances,
        "sha256": sha256,
        "content": hash_json({**head, "instances": instances, "sha256": sha256}),
    }
