"""Miniature data sets in the upstream layouts, made by hand for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from possam.datasets.conversion import convert
from possam.datasets.upstream.ade20k import read_ade20k
from possam.datasets.upstream.ade20k_full import read_ade20k_full
from possam.datasets.upstream.coco import read_coco
from possam.datasets.upstream.pascal_context_459 import read_pascal_context


def convert_coco(*, split: str, out: Path, workers: int, **files: Any) -> dict[str, Any]:
    """Convert what ``read_coco`` finds in ``files``; returns the manifest."""
    return convert(read_coco(**files), name="coco", split=split, out=out, workers=workers)


def convert_ade20k(*, split: str, out: Path, workers: int, **files: Any) -> dict[str, Any]:
    """As ``convert_coco``, for ``read_ade20k``."""
    source = read_ade20k(split=split, **files)
    return convert(source, name="ade20k", split=split, out=out, workers=workers)


def convert_ade20k_full(*, split: str, out: Path, workers: int, **files: Any) -> dict[str, Any]:
    """As ``convert_coco``, for ``read_ade20k_full``."""
    source = read_ade20k_full(split=split, **files)
    return convert(source, name="ade20k_full", split=split, out=out, workers=workers)


def convert_pascal_context(*, split: str, out: Path, workers: int, **files: Any) -> dict[str, Any]:
    """As ``convert_coco``, for ``read_pascal_context``."""
    source = read_pascal_context(split=split, **files)
    return convert(source, name="pascal_context_459", split=split, out=out, workers=workers)


def save_rgb_ids(path: Path, ids: np.ndarray) -> None:
    """Write a panoptic PNG: id = R + 256 G + 65536 B."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*ids.shape, 3), dtype=np.uint8)
    for channel in range(3):
        pixels[..., channel] = (ids // 256**channel) % 256
    Image.fromarray(pixels).save(path, compress_level=0)  # not the encoder's usual setting


def save_photo(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Write a JPEG of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def write(path: Path, value: Any) -> None:
    """Write text or JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


COCO_CATEGORIES = [
    {"id": 1, "name": "disc", "isthing": 1},
    {"id": 5, "name": "grass", "isthing": 0},
    {"id": 7, "name": "bar", "isthing": 1},
]
COCO_NAMES = "0:invalid_class_id\n1:disc,circle\n4:invalid_class_id\n5:grass\n7:bar,stick\n"


def coco_ids() -> np.ndarray:
    """4 x 6: grass 70000 on the left, disc 300, crowd of bars 9 at the right, one void pixel."""
    ids = np.full((4, 6), 70000)
    ids[1:3, 2:4] = 300
    ids[:, 5] = 9
    ids[3, 0] = 0
    return ids


def make_coco(root: Path) -> dict[str, Any]:
    """Two images of 4 x 6 pixels; returns the arguments of ``convert_coco``."""
    images, annotations = [], []
    for key in (12, 34):
        name = f"{key:012d}"
        save_photo(root / "val2017" / f"{name}.jpg", 4, 6, seed=key)
        save_rgb_ids(root / "panoptic_val2017" / f"{name}.png", coco_ids())
        images.append({"id": key, "file_name": f"{name}.jpg", "width": 6, "height": 4})
        segments = [
            {"id": 70000, "category_id": 5, "area": 1, "bbox": [0, 0, 1, 1], "iscrowd": 0},
            {"id": 300, "category_id": 1, "area": 4, "bbox": [2, 1, 2, 2], "iscrowd": 0},
            {"id": 9, "category_id": 7, "area": 4, "bbox": [5, 0, 1, 4], "iscrowd": 1},
        ]
        entry = {"image_id": key, "file_name": f"{name}.png", "segments_info": segments}
        annotations.append(entry)
    panoptic = {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}
    write(root / "panoptic.json", panoptic)
    square = [2.0, 1.0, 4.0, 1.0, 4.0, 3.0, 2.0, 3.0]  # the disc's four pixels as a polygon
    masks = [
        {"id": 101, "image_id": 12, "category_id": 1, "iscrowd": 0, "area": 4.0,
         "bbox": [2.0, 1.0, 2.0, 2.0], "segmentation": [square]},
        {"id": 102, "image_id": 12, "category_id": 7, "iscrowd": 1, "area": 4,
         "bbox": [5, 0, 1, 4], "segmentation": {"size": [4, 6], "counts": [20, 4]}},
        {"id": 103, "image_id": 99, "category_id": 7, "iscrowd": 0, "area": 4,
         "bbox": [5, 0, 1, 4], "segmentation": {"size": [4, 6], "counts": [20, 4]}},
    ]  # fmt: skip
    things = [entry for entry in COCO_CATEGORIES if entry["isthing"]]
    write(root / "instances.json", {"images": images, "annotations": masks, "categories": things})
    write(root / "names.txt", COCO_NAMES)
    return {
        "images": root / "val2017",
        "panoptic_json": root / "panoptic.json",
        "panoptic_png": root / "panoptic_val2017",
        "instances_json": root / "instances.json",
        "class_names": root / "names.txt",
        "split": "val",
        "out": root / "converted",
        "workers": 1,
    }


ADE_NAMES = "0:invalid_class_id\n1:wall\n2:bed,cot\n3:sky\n4:lamp\n"
ADE_TABLE = 'scene_parse_index,instance_index,name\n1,,wall\n2,1,"bed, cot"\n3,,sky\n4,2,lamp\n'


def ade_labels() -> np.ndarray:
    """3 x 5 scene parsing map: 0 void, wall 1, bed 2, sky 3, lamp 4."""
    return np.array(
        [
            [3, 3, 3, 3, 0],
            [1, 2, 2, 2, 4],
            [1, 1, 2, 2, 4],
        ],
        dtype=np.uint8,
    )


def ade_instances() -> np.ndarray:
    """Beds 1 and 2 and lamp 1 as (class, id); bed 2 reaches into the sky, a bed pixel has none."""
    pixels = np.zeros((3, 5, 3), dtype=np.uint8)
    pixels[1, 1, :2] = (1, 1)
    pixels[1, 2, :2] = (1, 1)
    pixels[0:3, 3, :2] = (1, 2)
    pixels[1:3, 4, :2] = (2, 1)
    return pixels


def make_ade20k(root: Path, *, count: int = 1) -> dict[str, Any]:
    """``count`` images of 3 x 5 pixels; returns the arguments of ``convert_ade20k``."""
    for number in range(1, count + 1):
        stem = f"ADE_val_{number:08d}"
        save_photo(root / "images/validation" / f"{stem}.jpg", 3, 5, seed=number)
        for folder, pixels in (
            ("annotations", ade_labels()),
            ("annotations_instance", ade_instances()),
        ):
            path = root / folder / "validation" / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write(root / "names.txt", ADE_NAMES)
    write(root / "table.csv", ADE_TABLE)
    return {
        "root": root,
        "instances_root": root / "annotations_instance",
        "class_names": root / "names.txt",
        "instance_classes_csv": root / "table.csv",
        "split": "val",
        "out": root / "converted",
        "workers": 1,
    }


FULL_NAMES = "0:invalid_class_id\n1:wall\n2:sky,heaven\n3:lamp\n"
FULL_TABLE = "train_id,ade_index,name\n0,2978,wall\n1,2420,sky\n2,1395,lamp\n"
FULL_INDICES = {"wall": 2978, "sky": 2420, "lamp": 1395, "shade": 2311}
"""ADE indices of the hand-made images; the shade is not evaluated."""


def full_indices() -> np.ndarray:
    """3 x 5 ADE indices: sky over a wall with a lamp, a shade, and one pixel without a label."""
    wall, sky, lamp, shade = FULL_INDICES.values()
    return np.array(
        [
            [sky, sky, sky, shade, 0],
            [wall, lamp, lamp, wall, wall],
            [wall, lamp, lamp, wall, wall],
        ]
    )


def save_ade_seg(path: Path, indices: np.ndarray) -> None:
    """Write a ``*_seg.png``: R = 10 (index // 256) + something below 10, G = index % 256, B = 5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*indices.shape, 3), 5, dtype=np.uint8)
    pixels[..., 0] = indices // 256 * 10 + np.arange(indices.size).reshape(indices.shape) % 10
    pixels[..., 1] = indices % 256
    Image.fromarray(pixels).save(path)


def make_ade20k_full(root: Path, *, count: int = 1) -> dict[str, Any]:
    """``count`` images of 3 x 5 pixels; returns the arguments of ``convert_ade20k_full``."""
    for number in range(1, count + 1):
        stem = root / f"images/ADE/validation/urban/street/ADE_val_{number:08d}"
        save_photo(stem.with_suffix(".jpg"), 3, 5, seed=number)
        save_ade_seg(stem.with_name(f"{stem.name}_seg.png"), full_indices())
    write(root / "names.txt", FULL_NAMES)
    write(root / "table.csv", FULL_TABLE)
    return {
        "root": root,
        "class_names": root / "names.txt",
        "classes_csv": root / "table.csv",
        "split": "val",
        "out": root / "converted",
        "workers": 1,
    }


CONTEXT_NAMES = "0:invalid_class_id\n1:wall\n2:sky,heaven\n3:lamp\n"


def context_labels() -> np.ndarray:
    """3 x 5 label map: 0 void, wall 1, sky 2, lamp 3."""
    return np.array(
        [
            [2, 2, 2, 2, 0],
            [1, 3, 3, 1, 1],
            [1, 3, 1, 1, 1],
        ],
        dtype=np.uint16,
    )


def save_mat(path: Path, labels: np.ndarray, *, name: str = "LabelMap") -> None:
    """Write a MATLAB file with one variable, compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: labels}, do_compression=True)


def make_pascal_context(root: Path, *, count: int = 2) -> dict[str, Any]:
    """``count`` images of 3 x 5 pixels and one of another split; arguments of the converter."""
    stems = [f"2008_{number:06d}" for number in range(1, count + 2)]
    for number, stem in enumerate(stems):
        save_photo(root / "VOC2010/JPEGImages" / f"{stem}.jpg", 3, 5, seed=number)
        save_mat(root / "trainval" / f"{stem}.mat", context_labels())
    write(root / "VOC2010/ImageSets/Main/val.txt", "".join(f"{stem}\n" for stem in stems[:-1]))
    write(root / "VOC2010/ImageSets/Main/train.txt", f"{stems[-1]}\n")
    write(root / "names.txt", CONTEXT_NAMES)
    return {
        "voc": root / "VOC2010",
        "labels": root / "trainval",
        "class_names": root / "names.txt",
        "split": "val",
        "out": root / "converted",
        "workers": 1,
    }
