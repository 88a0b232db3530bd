"""The full ADE20K release (2021_17_01), evaluated on 847 classes (A-847), to the one format.

A label map ``*_seg.png`` gives whole objects (parts are in other files): ADE index = (R // 10) *
256 + G; indices that are not evaluated are void. As in the published protocol (MaskFormer's
preparation, which Mask2Former, ODISE and FC-CLIP share), image and label are resized so that the
shorter side is at most 512 pixels: the image bilinearly, without a low-pass filter, kept as JPEG of
quality 75; the label to the nearest pixel. Smaller images are copied bit for bit. The data set
holds its images itself. Upstream's pickled index and the JSON beside each image are not read.
"""

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from possam.datasets.ade20k import image_number, split_folder
from possam.datasets.class_names import read_class_table, read_label_names
from possam.datasets.conversion import Converted, Task, convert
from possam.datasets.format import Category
from possam.datasets.photos import check_size
from possam.datasets.pixels import Array, decode_file
from possam.datasets.regions import NO_INSTANCES, convert_regions, stuff_categories
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file

SHORTER_SIDE = 512
"""Longest shorter side in pixels."""
_JPEG_QUALITY = 75
_LABEL = "_seg.png"
_COLUMNS = ("train_id", "ade_index", "name")
_INDICES = 26 * 256
"""One more than the largest ADE index that the colours can hold."""


def convert_ade20k_full(
    *, root: Path, class_names: Path, classes_csv: Path, split: str, out: Path, workers: int
) -> dict[str, Any]:
    """Convert one split of ``ADE20K_2021_17_01`` to ``out``.

    Args:
        root: folder ``ADE20K_2021_17_01``, with ``images/ADE/{training,validation}``.
        class_names: class-name file, indices 1..K.
        classes_csv: ``train_id, ade_index, name``, a line a class, in the same order.
        split: ``train`` or ``val``.
        out: folder to write; replaced if it exists, and not touched if the conversion fails.
        workers: processes.

    Returns:
        The manifest.

    Raises:
        InputError: names the file, what is wrong and what to do.
    """
    folder = split_folder(split)
    _refuse_scene_parsing(root)
    categories = _categories(class_names, classes_csv)
    return convert(
        name="ade20k_full",
        split=split,
        tasks=_tasks(root / "images" / "ADE" / folder, split, sha256_file(classes_csv)),
        converter=partial(_convert, class_of=_class_table(categories)),
        categories=categories,
        image_root=None,
        instances=NO_INSTANCES,
        out=out,
        workers=workers,
    )


def _refuse_scene_parsing(root: Path) -> None:
    if not (root / "images" / "ADE").exists() and (root / "annotations").exists():
        raise InputError(
            f"{root}: this is the scene parsing release (ADEChallengeData2016), whose labels are "
            "150 other classes; asset ade20k_full, folder ADE20K_2021_17_01, is needed here"
        )


def _categories(class_names: Path, table: Path) -> list[Category]:
    names = read_label_names(class_names)
    rows = read_class_table(table, _COLUMNS)
    try:
        order = [int(row["train_id"]) for row in rows]
        indices = [int(row["ade_index"]) for row in rows]
    except ValueError as error:
        raise InputError(f"{table}: an index is not a whole number ({error})") from error
    if order != list(range(len(names))):
        raise InputError(
            f"{table}: train_id must be 0..{len(names) - 1}, a line for each class of "
            f"{class_names}; it has {len(order)} lines"
        )
    for index in indices:
        if not 0 < index < _INDICES or indices.count(index) > 1:
            raise InputError(
                f"{table}: ade_index {index} must be in 1..{_INDICES - 1}, and only once"
            )
    return stuff_categories(names, indices)


def _class_table(categories: Sequence[Category]) -> Array:
    """Class index of each ADE index, int32, -1 where it is not evaluated."""
    table = np.full(_INDICES, -1, dtype=np.int32)
    for category in categories:
        table[category.upstream_id] = category.index
    return table


def _tasks(folder: Path, split: str, table: str) -> list[Task]:
    photos = sorted(folder.rglob(f"ADE_{split}_*.jpg"), key=lambda path: path.name)
    if not photos:
        raise InputError(
            f"{folder}: no file ADE_{split}_*.jpg in it or below; unpack asset ade20k_full and "
            "give its folder ADE20K_2021_17_01"
        )
    labels = {photo.with_name(f"{photo.stem}{_LABEL}") for photo in photos}
    for strange in sorted(set(folder.rglob(f"ADE_{split}_*{_LABEL}")) - labels)[:1]:
        raise InputError(f"{strange}: annotates no image beside it; unpack the archive again")
    numbers: dict[int, Path] = {}
    return [
        Task(
            id=image_number(photo, numbers),
            image=photo,
            sources=(photo.with_name(f"{photo.stem}{_LABEL}"),),
            payload={"classes": table},
        )
        for photo in photos
    ]


def _convert(task: Task, *, class_of: Array) -> Converted:
    photo, _ = decode_file(task.image, mode="RGB")
    indices = read_indices(task.sources[0])
    check_size(indices, task.sources[0], photo.shape[:2], task.image)
    size = protocol_size(*indices.shape)
    if size == indices.shape:
        return convert_regions(class_of[indices], image=task.image.read_bytes())
    stream = io.BytesIO()
    Image.fromarray(resize_image(photo, *size)).save(stream, "JPEG", quality=_JPEG_QUALITY)
    labels = class_of[resize_labels(indices, *size)]
    return convert_regions(labels, image=stream.getvalue())


def read_indices(path: Path) -> Array:
    """ADE indices of a ``*_seg.png``, int32 (H, W), 0 where nothing is labelled.

    Raises:
        InputError: damaged, or no map of this release.
    """
    pixels, _ = decode_file(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"{path}: a label map of the full ADE20K release is 8-bit RGB; this one has shape "
            f"{pixels.shape}. Labels of ADEChallengeData2016 cannot be used here"
        )
    wide = pixels.astype(np.int32)
    return wide[..., 0] // 10 * 256 + wide[..., 1]


def protocol_size(height: int, width: int) -> tuple[int, int]:
    """Height and width in pixels after resizing: the shorter side is at most 512."""
    shorter, longer = sorted((height, width))
    if shorter <= SHORTER_SIDE:
        return height, width
    longer = round(longer / shorter * SHORTER_SIDE)
    return (SHORTER_SIDE, longer) if height <= width else (longer, SHORTER_SIDE)


def resize_labels(labels: Array, height: int, width: int) -> Array:
    """Nearest pixel, (H, W) -> (height, width): the one at or before each new pixel's corner."""
    rows, columns = (
        np.arange(new) * old // new for old, new in zip(labels.shape, (height, width), strict=True)
    )
    return labels[rows[:, None], columns]


def resize_image(image: Array, height: int, width: int) -> Array:
    """Bilinear between pixel centres, uint8 (H, W, 3) -> uint8 (height, width, 3).

    Pillow would filter first; torch, which would not, costs each conversion process seconds.
    """
    low, high, weight = _taps(image.shape[0], height)
    rows = _mix(image[low], image[high], weight[:, None, None])
    low, high, weight = _taps(image.shape[1], width)
    return np.rint(_mix(rows[:, low], rows[:, high], weight[:, None])).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[Array, Array, Array]:
    """The two old pixels that each new one lies between, and the weight of the second."""
    centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (centre - low).astype(np.float32)


def _mix(first: Array, second: Array, weight: Array) -> Array:
    return first * (1 - weight) + second * weight
