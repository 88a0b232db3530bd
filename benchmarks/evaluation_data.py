"""Synthetic ground truth and predictions of ADE20K's size, drawn from a seed into a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle
from scipy import ndimage
from scipy.spatial import cKDTree

from possam.datasets.format import (
    ANNOTATIONS,
    FORMAT,
    MANIFEST,
    PANOPTIC,
    SEMANTIC,
    Category,
    ConvertedDataset,
    Segment,
)
from possam.datasets.label_runs import segment_table
from possam.datasets.pixels import encode_ids, encode_semantic
from possam.runtime.files import hash_json, sha256_file, write_json

SIZE = (512, 683)
SEGMENTS = 20
_SCENES = 50
"""Different drawings; every image is one of them, shifted, with its own segments and classes."""
_SWAY = 12.0
"""Amplitude of the waves of borders, in pixels."""


def categories(count: int) -> tuple[Category, ...]:
    """``count`` classes, two thirds of them things."""
    return tuple(
        Category(index=k, names=(f"class {k}",), is_thing=k % 3 < 2, upstream_id=k + 1)
        for k in range(count)
    )


def draw_scene(rng: np.random.Generator) -> NDArray[np.int64]:
    """Cells with swaying borders around random points: 0..SEGMENTS-1, int64 ``SIZE``."""
    grid = np.moveaxis(np.indices(SIZE, float), 0, -1)
    coarse = rng.normal(scale=_SWAY, size=(SIZE[0] // 16 + 2, SIZE[1] // 16 + 2, 2))
    sway = ndimage.zoom(coarse, (16, 16, 1), order=1)[: SIZE[0], : SIZE[1]]
    points = rng.random((SEGMENTS, 2)) * SIZE
    return np.asarray(cKDTree(points).query(grid + sway)[1], np.int64)


def _pictures(rng: np.random.Generator, images: int) -> Any:
    """Per image the segments of the ground truth and, shifted by a few pixels, the prediction."""
    scenes = [draw_scene(rng) for _ in range(min(images, _SCENES))]
    for number in range(images):
        scene = np.roll(scenes[number % len(scenes)], rng.integers(0, 200, 2), axis=(0, 1))
        yield scene, np.roll(scene, rng.integers(-8, 9, 2), axis=(0, 1))


def _save(pixels: NDArray[Any], path: Path) -> None:
    # With Pillow, as tools that write panoptic predictions do.
    Image.fromarray(pixels).save(path)


def write_panoptic(folder: Path, *, images: int, classes: int, seed: int) -> ConvertedDataset:
    """A converted data set in ``folder``, and predictions for it in ``predictions.json`` there.

    A quarter of the predicted segments have another class; a few lie on void.
    """
    rng = np.random.default_rng(seed)
    kinds = categories(classes)
    sides: dict[str, list[dict[str, Any]]] = {PANOPTIC: [], "predictions": []}
    for side in sides:
        (folder / side).mkdir()
    for number, scenes in enumerate(_pictures(rng, images)):
        right = rng.integers(0, classes, SEGMENTS)
        changed = rng.random(SEGMENTS) < 0.25
        guess = np.where(changed, rng.integers(0, classes, SEGMENTS), right)
        for side, scene, chosen in zip(sides, scenes, (right, guess), strict=True):
            keys = 1 + rng.choice((1 << 24) - 1, SEGMENTS, replace=False)
            if side == PANOPTIC:
                keys[-1] = 0
            ids, name = keys[scene], f"{number:06d}.png"
            _save(encode_ids(ids), folder / side / name)
            of = dict(zip(keys.tolist(), chosen.tolist(), strict=True))
            segments = [
                Segment(id=key, category=of[key], area=area, bbox=box, is_crowd=False).to_json()
                for key, area, box in segment_table(ids)
            ]
            sides[side].append({"image_id": number, "file_name": name, "segments_info": segments})
    common = {"images": _entries(images), "categories": [kind.to_json() for kind in kinds]}
    write_json(folder / "predictions.json", common | {"annotations": sides["predictions"]})
    return _finish(folder, common | {"annotations": sides[PANOPTIC]})


def write_labels(folder: Path, *, images: int, classes: int, seed: int) -> ConvertedDataset:
    """A converted data set with only semantic maps, and predicted label PNGs in ``labels/``.

    A twentieth of the ground truth is void; a quarter of the predicted segments have another class.
    """
    rng = np.random.default_rng(seed)
    (folder / SEMANTIC).mkdir()
    (folder / "labels").mkdir()
    annotations = []
    for number, (truth, guess) in enumerate(_pictures(rng, images)):
        right = rng.integers(0, classes, SEGMENTS)
        changed = rng.random(SEGMENTS) < 0.25
        named = np.where(changed, rng.integers(0, classes, SEGMENTS), right)
        name = f"{number:06d}.png"
        right[-1] = -1
        _save(encode_semantic(right[truth], classes), folder / SEMANTIC / name)
        _save(encode_semantic(named[guess], classes), folder / "labels" / name)
        annotations.append({"image_id": number, "file_name": name, "segments_info": []})
    kinds = [kind.to_json() for kind in categories(classes)]
    common = {"images": _entries(images), "categories": kinds, "annotations": annotations}
    return _finish(folder, common)


def _entries(images: int) -> list[dict[str, Any]]:
    height, width = SIZE
    return [
        {"id": k, "file_name": f"{k:06d}.jpg", "width": width, "height": height}
        for k in range(images)
    ]


def _finish(folder: Path, content: dict[str, Any]) -> ConvertedDataset:
    write_json(folder / ANNOTATIONS, content)
    manifest = {
        "format": FORMAT,
        "name": "synthetic",
        "split": "val",
        "image_root": "images",
        "vocabulary": [kind["names"] for kind in content["categories"]],
        # no instances file: AP has data of its own
        "sha256": {"annotations": sha256_file(folder / ANNOTATIONS), "instances": ""},
        "content": hash_json(content),
    }
    write_json(folder / MANIFEST, manifest)
    return ConvertedDataset.open(folder)


@dataclass(frozen=True)
class Detections:
    """COCO instances JSON, and the masks (RLE), class indices and scores found in each image."""

    instances: dict[str, Any]
    found: list[tuple[list[dict[str, Any]], list[int], list[float]]]

    def as_results(self) -> list[dict[str, Any]]:
        """COCO's results: one dictionary per detection."""
        return [
            {"image_id": number, "category_id": label, "segmentation": code, "score": score}
            for number, (masks, labels, scores) in enumerate(self.found)
            for code, label, score in zip(masks, labels, scores, strict=True)
        ]


def draw_detections(*, images: int, classes: int, top_k: int, seed: int) -> Detections:
    """Round objects, and ``top_k`` detections per image: near an object, or anywhere."""
    rng = np.random.default_rng(seed)
    height, width = SIZE
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)

    def encode(outlines: NDArray[np.float64]) -> list[dict[str, Any]]:
        shapes = outlines.reshape(len(outlines), -1)
        codes: list[dict[str, Any]] = rle.frPyObjects(shapes.tolist(), height, width)
        return codes

    def outline(count: int) -> NDArray[np.float64]:
        """Polygons (count,24,2) around random places."""
        radius = rng.uniform(15, 90, (count, 1)) * rng.uniform(0.8, 1.2, (count, len(angles)))
        place = rng.random((count, 1, 2)) * (width, height)
        return place + radius[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    annotations: list[dict[str, Any]] = []
    found = []
    for number in range(images):
        objects = outline(int(rng.integers(4, 16)))
        labels = rng.integers(0, classes, len(objects))
        for code, label in zip(encode(objects), labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "segmentation": code,
                    "area": float(rle.area(code)),
                    "bbox": rle.toBbox(code).tolist(),
                    "iscrowd": int(rng.random() < 0.02),
                }
            )
        near = rng.integers(0, len(objects), top_k)
        stray = rng.random(top_k) < 0.5
        shapes = objects[near] + rng.normal(scale=6, size=(top_k, 1, 2))
        shapes[stray] = outline(int(stray.sum()))
        chosen = np.where(rng.random(top_k) < 0.4, labels[near], rng.integers(0, classes, top_k))
        found.append((encode(shapes), chosen.tolist(), rng.random(top_k).tolist()))
    kinds = [{"id": k, "name": f"class {k}"} for k in range(classes)]
    entries = _entries(images)
    return Detections({"images": entries, "annotations": annotations, "categories": kinds}, found)
