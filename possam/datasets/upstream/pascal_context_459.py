"""PASCAL Context with all 459 classes (PC-459).

Photographs and image lists come from PASCAL VOC 2010. Published results use the 5,105 images of
``ImageSets/Main/val.txt``, at full size.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from possam.datasets.catalogue import FolderLayout, UpstreamDataset, many_files, one_file
from possam.datasets.class_names import read_label_names
from possam.datasets.files import Folder, locate, stray_files
from possam.datasets.records import Converted, Source, Task, stuff_categories
from possam.runtime.errors import InputError
from possam.runtime.reading import check_readable, reading

if TYPE_CHECKING:
    from possam.datasets.pixels import Array

_VARIABLE = "LabelMap"
_ABOVE = ("VOCdevkit/VOC2010/", "VOC2010/", "")
"""Folders above VOC 2010's files: those of the archive, and shorter ones that users keep."""


DECLARATION = UpstreamDataset(
    images={"val": 5105},
    metrics=("semantic",),
    roles={
        "images": "pascal_voc_2010",
        "labels": "pascal_context_459",
        "class_names": "pascal_context_459_class_names",
    },
    read=lambda parts, split: read_pascal_context(
        voc=parts["images"] / "VOCdevkit" / "VOC2010",
        labels=parts["labels"] / "trainval",
        class_names=parts["class_names"],
        split=split,
    ),
    folder=FolderLayout(
        root="VOC2010, with trainval/*.mat in it",
        splits={"train": "train", "val": "val"},
        read=lambda root, split, class_names: read_pascal_context(
            voc=root, labels=root / "trainval", class_names=class_names, split=split
        ),
    ),
    on_disk={
        "pascal_voc_2010": {
            "root": "pascal",
            "parts": [
                one_file(*(f"{above}ImageSets/Main/val.txt" for above in _ABOVE)),
                many_files(
                    *(f"{above}JPEGImages" for above in _ABOVE),
                    suffix=".jpg", at_least="pascal_context_459.val",
                ),
            ],
        },
        "pascal_context_459": {
            "root": "pascal",
            "parts": [
                many_files(
                    "trainval", "VOCdevkit/VOC2010/trainval", "VOC2010/trainval",
                    suffix=".mat", at_least="pascal_context_459.val", content=True,
                )
            ],
        },
    },
)  # fmt: skip


def read_pascal_context(*, voc: Path, labels: Path, class_names: Path, split: str) -> Source:
    """Images and classes of one split of PASCAL Context.

    Args:
        voc: folder ``VOC2010``, with ``JPEGImages`` and ``ImageSets/Main``.
        labels: folder of ``<image name>.mat``; those of other splits are not read.
        class_names: class-name file with indices 1..K, as in the label maps, whose 0 is void.
        split: name of the image list in ``ImageSets/Main`` (``train``, ``val``).

    Raises:
        InputError: an unreadable or faulty image list or class-name file.
    """
    names = read_label_names(class_names)
    images, listing = voc / "JPEGImages", voc / "ImageSets/Main" / f"{split}.txt"
    stems = _read_listing(listing)
    photos = Folder(images, what="photograph")
    pictures = locate(
        (f"{stem}.jpg" for stem in stems.values()), photos.picture, images, listing, "photograph"
    )
    return Source(
        tasks=[
            Task(id=number, image=pictures[f"{stem}.jpg"], sources=(labels / f"{stem}.mat",))
            for number, stem in stems.items()
        ],
        converter=partial(_convert, num_classes=len(names)),
        categories=stuff_categories(names, list(names)),
        image_root=images,
        stray=stray_files(photos),
    )


def _read_listing(path: Path) -> dict[int, str]:
    """Image names of a split by number: ``2008_000003`` has number 2008000003."""
    try:
        with reading(path, missing="give the folder VOCdevkit/VOC2010, with ImageSets/Main in it"):
            lines = path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give the folder VOCdevkit/VOC2010, "
            "with ImageSets/Main in it"
        ) from error
    stems: dict[int, str] = {}
    for number, stem in enumerate(lines, start=1):
        digits = stem.replace("_", "")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
            raise InputError(f"{path}: line {number}: {stem!r} is no image name like 2008_000003")
        if int(digits) in stems:
            raise InputError(f"{path}: line {number}: {stem} comes twice; remove one of them")
        stems[int(digits)] = stem
    return stems


def _convert(task: Task, *, num_classes: int) -> Converted:
    from possam.datasets.images import check_photo, convert_regions

    size, image_sha256 = check_photo(task.image)
    labels = read_label_map(task.sources[0], num_classes, size, task.image)
    return convert_regions(labels, image=image_sha256)


def read_label_map(path: Path, num_classes: int, size: tuple[int, int], photo: Path) -> Array:
    """Class indices of a ``.mat`` file, int32 (H, W), -1 void; InputError if it is faulty.

    ``size``: (H, W) of the photograph; a map of another size is refused before it is inflated.
    """
    import numpy as np

    from possam.datasets.images import check_size
    from possam.datasets.mat_file import find_matrix

    check_readable(path, missing="unpack asset pascal_context_459 again")
    try:
        matrix = find_matrix(path, _VARIABLE)
        check_size(matrix.shape, path, size, photo)
        pixels = matrix.read()
    except ValueError as error:
        raise InputError(
            f"{path}: not a readable MATLAB file ({error}); it may be truncated: replace it by a "
            f"good one, or save the matrix {_VARIABLE} with MATLAB's -v7"
        ) from error
    if pixels.min() < 0 or pixels.max() > num_classes:
        raise InputError(
            f"{path}: {_VARIABLE}: labels are {pixels.min()}..{pixels.max()}; valid are "
            f"1..{num_classes}, and 0 for void: use the class names that belong to these maps"
        )
    return pixels.astype(np.int32) - 1
