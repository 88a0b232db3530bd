"""ADE20K challenge (scene parsing labels and instance annotations) to the one format.

Panoptic ground truth, as in the common preparation of this benchmark (Mask2Former's, which FC-CLIP
and ODISE share): stuff from the scene parsing map, things from the instance map; where both claim a
pixel the instance wins; a pixel of a thing class without an instance is void. Semantic ground truth
is the scene parsing map as it is. Areas and boxes are counted from the final map.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from possam.datasets.class_names import read_class_table, read_label_names
from possam.datasets.conversion import Converted, Task, convert, things_as_instances
from possam.datasets.format import Category, Segment
from possam.datasets.label_runs import compact, segment_table
from possam.datasets.photos import check_photo, check_size
from possam.datasets.pixels import Array, decode_file, runs
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file

FOLDERS = {"train": "training", "val": "validation"}
_COLUMNS = ("scene_parse_index", "instance_index", "name")


def convert_ade20k(
    *,
    root: Path,
    instances_root: Path | None,
    class_names: Path,
    instance_classes_csv: Path,
    split: str,
    out: Path,
    workers: int,
) -> dict[str, Any]:
    """Convert one split of ``ADEChallengeData2016`` to ``out``.

    Args:
        root: folder ``ADEChallengeData2016``, with ``images`` and ``annotations``.
        instances_root: folder ``annotations_instance`` (R: instance class, G: instance id, 0 none).
            None: there are no instance annotations, and each thing class of an image becomes one
            segment; the manifest then says ``instances: none (semantic regions)``.
        class_names: class-name file, indices 1..K as in the label maps.
        instance_classes_csv: ``scene_parse_index, instance_index, name``, a line a class;
            ``instance_index`` is empty for stuff.
        split: ``train`` or ``val``.
        out: folder to write; replaced if it exists, and not touched if the conversion fails.
        workers: processes.

    Returns:
        The manifest.

    Raises:
        InputError: names the file, what is wrong and what to do.
    """
    folder = split_folder(split)
    _refuse_full_release(root)
    categories, things = _categories(class_names, instance_classes_csv)
    images = root / "images" / folder
    labels = root / "annotations" / folder
    instances = None if instances_root is None else instances_root / folder
    tasks = _tasks(images, labels, instances, sha256_file(instance_classes_csv))
    return convert(
        name="ade20k",
        split=split,
        tasks=tasks,
        converter=partial(_convert, categories=categories, things=things),
        categories=categories,
        image_root=images,
        instances="none (semantic regions)" if instances is None else "upstream annotations",
        out=out,
        workers=workers,
    )


def split_folder(split: str) -> str:
    """ADE20K's folder of ``train`` or ``val``.

    Raises:
        InputError: no such split.
    """
    if split not in FOLDERS:
        raise InputError(f"split {split!r} of ADE20K does not exist; valid: {', '.join(FOLDERS)}")
    return FOLDERS[split]


def image_number(photo: Path, taken: dict[int, Path]) -> int:
    """The number at the end of an ADE20K file name; entered into ``taken``.

    Raises:
        InputError: no number, or one that is taken.
    """
    digits = re.search(r"(\d+)$", photo.stem)
    if digits is None or taken.setdefault(int(digits[1]), photo) != photo:
        raise InputError(
            f"{photo}: the name must end with the image's number, each number once (as in "
            "ADE_val_00000001.jpg)"
        )
    return int(digits[1])


def _refuse_full_release(root: Path) -> None:
    if (root / "images" / "ADE").exists() or (root / "index_ade20k.pkl").exists():
        raise InputError(
            f"{root}: this is the full ADE20K release (images/ADE/...), whose labels are other "
            "classes; asset ade20k, folder ADEChallengeData2016, is needed here"
        )


def _categories(class_names: Path, table: Path) -> tuple[list[Category], dict[int, int]]:
    """The classes, and the class index of each instance class."""
    names = read_label_names(class_names)
    rows = read_class_table(table, _COLUMNS)
    try:
        order = [int(row["scene_parse_index"]) for row in rows]
        instance = [int(row["instance_index"]) if row["instance_index"] else 0 for row in rows]
    except ValueError as error:
        raise InputError(f"{table}: an index is not a whole number ({error})") from error
    if order != list(names):
        raise InputError(
            f"{table}: scene_parse_index must be 1..{len(names)}, a line for each class of "
            f"{class_names}; it has {len(order)} lines"
        )
    used = sorted(value for value in instance if value)
    if used != list(range(1, len(used) + 1)):
        raise InputError(f"{table}: instance_index must be 1..M, each once; found {used}")
    categories = [
        Category(index=key - 1, names=names[key], is_thing=value > 0, upstream_id=key)
        for key, value in zip(order, instance, strict=True)
    ]
    return categories, {value: i for i, value in enumerate(instance) if value}


def _listing(folder: Path, suffix: str) -> dict[str, Path]:
    try:
        return {path.stem: path for path in sorted(folder.glob(f"*{suffix}"))}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _tasks(images: Path, labels: Path, instances: Path | None, table: str) -> list[Task]:
    photos = _listing(images, ".jpg")
    if not photos:
        raise InputError(f"{images}: no .jpg file; unpack asset ade20k and give its folder")
    for folder in (labels, *([] if instances is None else [instances])):
        found = _listing(folder, ".png")
        for missing in sorted(photos.keys() - found.keys())[:1]:
            raise InputError(
                f"{folder / missing}.png: missing, the annotation of {photos[missing]}; unpack the "
                "annotations again"
            )
        for strange in sorted(found.keys() - photos.keys())[:1]:
            raise InputError(
                f"{images / strange}.jpg: missing, {found[strange]} annotates it; unpack the "
                "images again"
            )
    tasks: list[Task] = []
    numbers: dict[int, Path] = {}
    for stem, photo in photos.items():
        sources = [labels / f"{stem}.png"]
        if instances is not None:
            sources.append(instances / f"{stem}.png")
        tasks.append(
            Task(
                id=image_number(photo, numbers),
                image=photo,
                sources=tuple(sources),
                payload={"instance_classes": table},
            )
        )
    return tasks


def _convert(task: Task, *, categories: Sequence[Category], things: Mapping[int, int]) -> Converted:
    size, image_sha256 = check_photo(task.image)
    labels = _read_labels(task.sources[0], len(categories))
    instance_path = task.sources[1] if len(task.sources) > 1 else None
    keys = None if instance_path is None else _read_instances(instance_path, things)
    maps = [(task.sources[0], labels)]
    if instance_path is not None and keys is not None:
        maps.append((instance_path, keys))
    for path, array in maps:
        check_size(array, path, size, task.image)
    ids, classes = merge_maps(labels, keys, categories)
    segments = tuple(
        Segment(id=key, category=classes[key], area=area, bbox=box, is_crowd=False)
        for key, area, box in segment_table(ids)
    )
    return Converted(
        width=size[1],
        height=size[0],
        image=image_sha256,
        ids=ids,
        semantic=labels,
        segments=segments,
        instances=things_as_instances(ids, segments, categories),
    )


def _read_labels(path: Path, num_classes: int) -> Array:
    """Scene parsing map as class indices, int16 (H, W), -1 void."""
    pixels, _ = decode_file(path)
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise InputError(
            f"{path}: a label map has one 8-bit channel; this one has shape {pixels.shape}. Labels "
            "of the full ADE20K release cannot be used here"
        )
    labels = np.subtract(pixels, 1, dtype=np.int16)
    if labels.max() >= num_classes:
        raise InputError(
            f"{path}: label {labels.max() + 1} is no class (0 is void, 1..{num_classes}); use the "
            "label maps of ADEChallengeData2016"
        )
    return labels


def _read_instances(path: Path, things: Mapping[int, int]) -> Array:
    """Instance map as ``class index * 256 + instance id``, unsigned (H, W), 0 where is none."""
    pixels, _ = decode_file(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: an instance map is 8-bit RGB; this one has {pixels.shape}")
    both = pixels[..., 0].astype(np.uint16)
    both <<= 8
    both |= pixels[..., 1]
    starts, lengths = runs(both)
    kinds, numbers = np.divmod(both.ravel()[starts].astype(np.int32), 256)
    table = np.full(256, -1, dtype=np.int32)
    for kind, index in things.items():
        table[kind] = index
    classes = table[kinds]
    wrong = (numbers > 0) & (classes < 0)
    if wrong.any():
        raise InputError(
            f"{path}: instance class {kinds[wrong].max()} (red) is not in the table of instance "
            f"classes (1..{len(things)}); use the annotations of the same release"
        )
    keys = np.where(numbers > 0, classes * 256 + numbers, 0)
    return np.repeat(compact(keys), lengths).reshape(both.shape)


def merge_maps(
    labels: Array, instances: Array | None, categories: Sequence[Category]
) -> tuple[Array, dict[int, int]]:
    """Panoptic map of one image.

    Args:
        labels: class indices, integer (H, W), -1 void.
        instances: ``class index * 256 + instance id``, integer (H, W), 0 none; None: no annotation,
            thing classes are segments as they are.
        categories: the classes.

    Returns:
        Segment ids, unsigned (H, W), 1..S (stuff first, by class; then things, by class and
        instance), 0 void; and the class of each id.
    """
    is_thing = np.array([category.is_thing for category in categories])
    offset = 256 * len(categories)  # stuff keys lie below all thing keys
    maps = (labels,) if instances is None else (labels, instances)
    shape = labels.shape
    starts, lengths = runs(*maps)
    labels = labels.ravel()[starts].astype(np.int32)
    stuff_keys = np.where(labels >= 0, labels + 1, 0)
    if instances is None:
        keys = np.where((labels >= 0) & is_thing[labels], offset + 256 * labels + 1, stuff_keys)
    else:
        instances = instances.ravel()[starts].astype(np.int32)
        keys = np.where((labels >= 0) & ~is_thing[labels], stuff_keys, 0)
        keys = np.where(instances > 0, offset + instances, keys)
    values, numbers = np.unique(keys, return_inverse=True)
    first = 1 if values[0] != 0 else 0
    ids = np.repeat(compact(numbers + first), lengths).reshape(shape)
    classes = {}
    for position, value in enumerate(values.tolist()):
        if value:
            index = (value - offset) // 256 if value >= offset else value - 1
            classes[position + first] = index
    return ids, classes
