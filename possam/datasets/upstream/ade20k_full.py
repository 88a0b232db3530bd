"""The full ADE20K release (2021_17_01), evaluated on 847 classes (A-847).

A label map ``*_seg.png`` labels whole objects, not parts: ADE index = (R // 10) * 256 + G. Indices
that are not evaluated are void. As in MaskFormer's preparation (Mask2Former, ODISE and FC-CLIP use
it, too), image and label map are resized so that the shorter side is at most 512 pixels: the image
bilinearly, without a low-pass filter, stored as JPEG of quality 75; the label map by nearest pixel.
Smaller images are copied bit for bit. Upstream's index and JSON files are not read.
"""

from __future__ import annotations

import io
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from possam.datasets.catalogue import FolderLayout, UpstreamDataset, one_file
from possam.datasets.files import PICTURES, Folder, stray_files
from possam.datasets.records import Category, Converted, Source, Task, stuff_categories
from possam.datasets.upstream.ade20k import (
    SPLITS,
    image_number,
    read_index_table,
    split_folder,
)
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file

if TYPE_CHECKING:
    from possam.datasets.format import ConvertedDataset
    from possam.datasets.pixels import Array

SHORTER_SIDE = 512
"""Upper limit of the shorter side, in pixels."""
_JPEG_QUALITY = 75
_LABEL = "_seg"
_OTHER_MAP = re.compile(r"_(seg|parts_\d+)$")
"""How stems of label maps end."""
_COLUMNS = ("train_id", "ade_index", "name")
_INDICES = 26 * 256
"""One more than the largest ADE index that the colours can encode."""
_VALIDATION = "images/ADE/validation"


def _faults(dataset: ConvertedDataset) -> list[str]:
    """One message per image whose shorter side is above the protocol's limit."""
    return [
        f"{record.file}: {record.width}x{record.height} pixels; the shorter side must be at most "
        f"{SHORTER_SIDE}"
        for record in dataset.images
        if min(record.width, record.height) > SHORTER_SIDE
    ]


DECLARATION = UpstreamDataset(
    images={"val": 2000},
    metrics=("semantic",),
    roles={
        "images": "ade20k_full",
        "class_names": "ade20k_full_class_names",
        "classes": "ade20k_full_classes",
    },
    read=lambda parts, split: read_ade20k_full(
        root=parts["images"] / "ADE20K_2021_17_01",
        class_names=parts["class_names"],
        classes_csv=parts["classes"],
        split=split,
    ),
    folder=FolderLayout(
        root="ADE20K_2021_17_01",
        splits=SPLITS,
        read=lambda root, split, class_names, class_table: read_ade20k_full(
            root=root, class_names=class_names, classes_csv=class_table, split=split
        ),
        class_table=Path("params/facts/ade20k_full_classes.csv"),
    ),
    faults=_faults,
    on_disk={
        "ade20k_full": {
            "root": "ade20k_full",
            "parts": [
                one_file(f"ADE20K_2021_17_01/{_VALIDATION}", _VALIDATION)
                | {
                    "files": [
                        {"suffix": ".jpg", "exactly": "ade20k_full.val"},
                        {"suffix": f"{_LABEL}.png", "exactly": "ade20k_full.val", "content": True},
                    ]
                }
            ],
        }
    },
)


def read_ade20k_full(*, root: Path, class_names: Path, classes_csv: Path, split: str) -> Source:
    """Images and classes of one split (``train``, ``val``) of ``ADE20K_2021_17_01``.

    Args:
        root: folder ``ADE20K_2021_17_01``, with ``images/ADE/{training,validation}``.
        class_names: class-name file with indices 1..K.
        classes_csv: ``train_id, ade_index, name``, one line per class of ``class_names``, in order.

    Raises:
        InputError: an unknown split, another release, no images or a faulty table.
    """
    import numpy as np

    folder = split_folder(split)
    if not (root / "images" / "ADE").exists() and (root / "annotations").exists():
        raise InputError(
            f"{root}: this is the scene parsing release (ADEChallengeData2016), whose labels are "
            "150 other classes; asset ade20k_full, folder ADE20K_2021_17_01, is needed here"
        )
    categories = _categories(class_names, classes_csv)
    class_of = np.full(_INDICES, -1, dtype=np.int32)  # -1: not evaluated
    class_of[[category.upstream_id for category in categories]] = np.arange(len(categories))
    files = Folder(root / "images" / "ADE" / folder, what="photograph")
    return Source(
        tasks=_tasks(files, split, sha256_file(classes_csv)),
        converter=partial(_convert, class_of=class_of),
        categories=categories,
        image_root=None,
        stray=stray_files(files),
    )


def _categories(class_names: Path, table: Path) -> list[Category]:
    names, indices, own = read_index_table(class_names, table, _COLUMNS, start=0)
    for index in indices:
        if not 0 < index < _INDICES or indices.count(index) > 1:
            raise InputError(
                f"{table}: ade_index {index} must be in 1..{_INDICES - 1}, and only once"
            )
    return stuff_categories(names, indices, own)


def _tasks(files: Folder, split: str, table: str) -> list[Task]:
    labels = files.by_stem(".png", ending=_LABEL)
    photos = {
        stem: photo
        for stem, photo in files.by_stem(*PICTURES).items()
        if stem.startswith(f"ADE_{split}_") and not _OTHER_MAP.search(stem)
    }
    if not photos:
        raise InputError(
            f"{files.path}: no file ADE_{split}_*.jpg in it or below; give the folder "
            "ADE20K_2021_17_01, or one of its layout"
        )
    for strange in sorted(labels.keys() - photos.keys())[:1]:
        raise InputError(f"{labels[strange]}: annotates no image; add it, or leave this file out")
    for missing in sorted(photos.keys() - labels.keys())[:1]:
        raise InputError(
            f"{photos[missing]}: {missing}{_LABEL}.png is missing, its annotation; add it, or "
            "leave the photograph out"
        )
    numbers: dict[int, Path] = {}
    return [
        Task(
            id=image_number(photo, numbers),
            image=photo,
            sources=(labels[stem],),
            payload={"classes": table},
        )
        for stem, photo in photos.items()
    ]


def _convert(task: Task, *, class_of: Array) -> Converted:
    from PIL import Image

    from possam.datasets import images
    from possam.datasets.pixels import decode_file

    photo, _ = decode_file(task.image, mode="RGB")
    indices = read_indices(task.sources[0])
    images.check_size(indices.shape, task.sources[0], photo.shape[:2], task.image)
    size = images.limited_size(*indices.shape, shorter_side=SHORTER_SIDE)
    if size == indices.shape:
        return images.convert_regions(class_of[indices], image=task.image.read_bytes())
    stream = io.BytesIO()
    Image.fromarray(images.resize_image(photo, *size)).save(stream, "JPEG", quality=_JPEG_QUALITY)
    return images.convert_regions(
        class_of[images.resize_labels(indices, *size)], image=stream.getvalue()
    )


def read_indices(path: Path) -> Array:
    """ADE indices of a ``*_seg.png``, int32 (H, W), 0 for none; InputError if not 8-bit RGB."""
    import numpy as np

    from possam.datasets.pixels import decode_file

    pixels, _ = decode_file(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise InputError(
            f"{path}: a label map of the full ADE20K release is 8-bit RGB; this one has shape "
            f"{pixels.shape}. Labels of ADEChallengeData2016 cannot be used here"
        )
    wide = pixels.astype(np.int32)
    return wide[..., 0] // 10 * 256 + wide[..., 1]
