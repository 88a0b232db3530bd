"""ADE20K challenge data (scene parsing labels and instance annotations).

Panoptic ground truth is made as in Mask2Former's preparation, which FC-CLIP and ODISE share: stuff
comes from the scene parsing map, things from the instance map. Where both label a pixel, the
instance wins; a pixel of a thing class without an instance is void. Semantic ground truth is the
scene parsing map, unchanged. Areas and boxes are computed from the panoptic map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.datasets.catalogue import FolderLayout, UpstreamDataset, many_files
from possam.datasets.class_names import check_numbering, read_class_table, read_label_names
from possam.datasets.files import PICTURES, Folder, stray_files
from possam.datasets.records import UPSTREAM_INSTANCES, Category, Converted, Source, Task
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file

if TYPE_CHECKING:
    from possam.datasets.pixels import Array

SPLITS = {"training": "train", "validation": "val"}
"""Name of a split in this project, by ADE20K's folder."""
_COLUMNS = ("scene_parse_index", "instance_index", "name")


def _on_disk(folder: str, elsewhere: str, **files: Any) -> list[dict[str, Any]]:
    """The parts for both splits of ``folder``, which holds one file per image."""
    return [
        many_files(f"{folder}/{split}", f"{elsewhere}/{split}", exactly=f"ade20k.{ours}", **files)
        for split, ours in SPLITS.items()
    ]


_ROOT = "ADEChallengeData2016"
_PNG = {"suffix": ".png", "content": True}

DECLARATION = UpstreamDataset(
    images={"train": 20210, "val": 2000},
    metrics=("panoptic", "instance", "semantic"),
    roles={
        "images": "ade20k",
        "instances": "ade20k_instances",
        "class_names": "ade20k_class_names",
        "classes": "ade20k_instance_classes",
    },
    read=lambda parts, split: read_ade20k(
        root=parts["images"] / _ROOT,
        instances_root=parts["instances"] / "annotations_instance",
        class_names=parts["class_names"],
        instance_classes_csv=parts["classes"],
        split=split,
    ),
    folder=FolderLayout(
        root="ADEChallengeData2016, with annotations_instance beside it",
        splits=SPLITS,
        read=lambda root, split, class_names, class_table, without_instances: read_ade20k(
            root=root,
            instances_root=None if without_instances else root.parent / "annotations_instance",
            class_names=class_names,
            instance_classes_csv=class_table,
            split=split,
        ),
        class_table=Path("params/facts/ade20k_instance_classes.csv"),
        without_instances=True,
    ),
    on_disk={
        "ade20k": {
            "root": "ade20k",
            "parts": _on_disk(f"{_ROOT}/images", "images", suffix=".jpg")
            + _on_disk(f"{_ROOT}/annotations", "annotations", **_PNG),
        },
        "ade20k_instances": {
            "root": "ade20k",
            "parts": _on_disk("annotations_instance", f"{_ROOT}/annotations_instance", **_PNG),
        },
    },
)


def read_ade20k(
    *,
    root: Path,
    instances_root: Path | None,
    class_names: Path,
    instance_classes_csv: Path,
    split: str,
) -> Source:
    """Images and classes of one split (``train``, ``val``) of ``ADEChallengeData2016``.

    Args:
        root: folder ``ADEChallengeData2016``, with ``images`` and ``annotations``.
        instances_root: folder ``annotations_instance`` (R: instance class, G: instance id, 0 none).
            None: each thing class of an image becomes one segment.
        class_names: class-name file with indices 1..K, as in the label maps.
        instance_classes_csv: ``scene_parse_index, instance_index, name``, one line per class;
            ``instance_index`` is empty for stuff.

    Raises:
        InputError: an unknown split, another release, a missing file or a faulty table.
    """
    folder = split_folder(split)
    if (root / "images" / "ADE").exists() or (root / "index_ade20k.pkl").exists():
        raise InputError(
            f"{root}: this is the full ADE20K release (images/ADE/...), whose labels are other "
            "classes; asset ade20k, folder ADEChallengeData2016, is needed here"
        )
    categories, things = _categories(class_names, instance_classes_csv)
    images = Folder(root / "images" / folder, what="photograph")
    maps = [Folder(root / "annotations" / folder, what="label map")]
    if instances_root is not None:
        maps.append(Folder(instances_root / folder, what="instance map"))
    return Source(
        tasks=_tasks(images, maps, sha256_file(instance_classes_csv)),
        converter=partial(_convert, categories=categories, things=things),
        categories=categories,
        image_root=images.path,
        instances="none (semantic regions)" if instances_root is None else UPSTREAM_INSTANCES,
        stray=stray_files(images, *maps),
    )


def split_folder(split: str) -> str:
    """ADE20K's folder of ``train`` or ``val``; InputError for another split."""
    folders = {ours: folder for folder, ours in SPLITS.items()}
    if split not in folders:
        raise InputError(f"split {split!r} of ADE20K does not exist; valid: {', '.join(folders)}")
    return folders[split]


def image_number(photo: Path, taken: dict[int, Path]) -> int:
    """The number at the end of a file name, added to ``taken``; InputError if none, or not new."""
    digits = re.search(r"(\d+)$", photo.stem)
    if digits is None or taken.setdefault(int(digits[1]), photo) != photo:
        raise InputError(
            f"{photo}: the name must end with the image's number, each number once (as in "
            "ADE_val_00000001.jpg)"
        )
    return int(digits[1])


def read_index_table(
    class_names: Path, table: Path, columns: tuple[str, str, str], *, start: int
) -> tuple[dict[int, tuple[str, ...]], list[int], list[str]]:
    """Class names by label; the second column of ``table`` (0 for an empty cell), and the third.

    Raises an InputError unless the first column counts the classes from ``start``.
    """
    names, rows = read_label_names(class_names), read_class_table(table, columns)
    try:
        order, values = ([int(row[key] or 0) for row in rows] for key in columns[:2])
    except ValueError as error:
        raise InputError(f"{table}: an index is not a whole number ({error})") from error
    if order != list(range(start, start + len(names))):
        raise InputError(
            f"{table}: {columns[0]} must be {start}..{start + len(names) - 1}, one line per class "
            f"of {class_names}; it has {len(order)} lines"
        )
    own = [row[columns[2]] for row in rows]
    check_numbering(list(names.values()), own, class_names, table)
    return names, values, own


def _categories(class_names: Path, table: Path) -> tuple[list[Category], dict[int, int]]:
    """The classes, and the class index (0..K-1) by instance class (1..M)."""
    names, instance, own = read_index_table(class_names, table, _COLUMNS, start=1)
    used = sorted(value for value in instance if value)
    if used != list(range(1, len(used) + 1)):
        raise InputError(f"{table}: instance_index must be 1..M, each once; found {used}")
    categories = [
        Category(
            index=key - 1,
            names=names[key],
            is_thing=value > 0,
            upstream_id=key,
            upstream_name=name,
        )
        for key, value, name in zip(names, instance, own, strict=True)
    ]
    return categories, {value: i for i, value in enumerate(instance) if value}


def _tasks(images: Folder, maps: Sequence[Folder], table: str) -> list[Task]:
    photos, found = images.by_stem(*PICTURES), [folder.by_stem(".png") for folder in maps]
    if not photos:
        raise InputError(
            f"{images.path}: no photograph ({', '.join(PICTURES)}); give the folder "
            "ADEChallengeData2016, or one of its layout"
        )
    for folder, labels in zip(maps, found, strict=True):
        for missing in sorted(photos.keys() - labels.keys())[:1]:
            raise InputError(
                f"{folder.path / missing}.png: missing, the annotation of {photos[missing]}; add "
                "it, or leave the photograph out"
            )
        for strange in sorted(labels.keys() - photos.keys())[:1]:
            raise InputError(
                f"{images.path / strange}.jpg: missing, {labels[strange]} annotates it; add it, or "
                "leave the annotation out"
            )
    numbers: dict[int, Path] = {}
    return [
        Task(
            id=image_number(photo, numbers),
            image=photo,
            sources=tuple(labels[stem] for labels in found),
            payload={"instance_classes": table},
        )
        for stem, photo in photos.items()
    ]


def _convert(task: Task, *, categories: Sequence[Category], things: Mapping[int, int]) -> Converted:
    from possam.datasets import images

    size, image_sha256 = images.check_photo(task.image)
    maps = [_read_labels(task.sources[0], len(categories))]
    maps += [_read_instances(path, things) for path in task.sources[1:]]
    for path, array in zip(task.sources, maps, strict=True):
        images.check_size(array.shape, path, size, task.image)
    ids, classes = images.merge_maps(maps[0], maps[1] if len(maps) > 1 else None, categories)
    segments = images.find_segments(ids, classes.__getitem__)
    return Converted(
        image=image_sha256,
        ids=ids,
        semantic=maps[0],
        segments=segments,
        instances=images.things_as_instances(ids, segments, categories),
    )


def _read_labels(path: Path, num_classes: int) -> Array:
    """Class indices of a scene parsing map, int16 (H, W), -1 void."""
    import numpy as np

    from possam.datasets.pixels import decode_file

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
    """``class index * 256 + instance id`` of an instance map, unsigned (H, W), 0 for none."""
    import numpy as np

    from possam.datasets.label_runs import compact
    from possam.datasets.pixels import decode_file, runs

    pixels, _ = decode_file(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(f"{path}: an instance map is 8-bit RGB; this one has {pixels.shape}")
    both = pixels[..., 0].astype(np.uint16) << 8 | pixels[..., 1]
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
