"""A small converted data set, drawn by hand: 5 classes, 6 images, void, a crowd region.

And predictions for it: the ground truth in COCO panoptic format, and as label PNGs.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from possam.datasets.format import FORMAT, ConvertedDataset
from possam.datasets.pixels import encode_ids
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.predictions import PredictionWriter
from possam.runtime.files import hash_json, sha256_file, write_json

NAMES = (("cat", "kitten"), ("sky",), ("dog",), ("grass", "lawn"), ("bus",))
THINGS = (True, False, True, False, True)
UPSTREAM = (17, 187, 18, 193, 6)
SIZES = ((24, 30), (24, 30), (20, 20), (24, 30), (20, 20), (24, 30))


def _draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[dict]]:
    """Stuff above and below, void at the left edge, up to three things, one of them a crowd."""
    height, width = size
    ids = np.full(size, 70_001)
    ids[height // 2 :] = 70_002
    categories = {70_001: (1, 0), 70_002: (3, 0)}
    for number in range(3):
        top, left = rng.integers(0, height - 8), rng.integers(4, width - 8)
        key = 300 + number
        ids[top : top + 8, left : left + 7] = key
        categories[key] = (int(rng.choice([0, 2, 4])), int(number == 2 and rng.random() < 0.5))
    ids[:, :3] = 0
    segments = []
    for key, (category, crowd) in categories.items():
        rows, columns = np.nonzero(ids == key)
        if not rows.size:
            continue
        x, y = int(columns.min()), int(rows.min())
        box = [x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1]
        segments.append(
            {
                "id": key,
                "category_id": category,
                "area": int(rows.size),
                "bbox": box,
                "iscrowd": crowd,
            }
        )
    return ids, segments


def write_dataset(folder: Path) -> ConvertedDataset:
    rng = np.random.default_rng(8)
    for name in ("panoptic", "semantic", "images"):
        (folder / name).mkdir(parents=True)
    images, annotations, objects = [], [], []
    for number, size in enumerate(SIZES):
        image_id, stem = 50 - number, f"picture_{number}"
        ids, segments = _draw(rng, size)
        Image.fromarray(encode_ids(ids)).save(folder / "panoptic" / f"{stem}.png")
        labels = np.full(size, 255, np.uint8)
        for segment in segments:
            labels[ids == segment["id"]] = segment["category_id"]
            if THINGS[segment["category_id"]]:
                code = rle.encode(np.asfortranarray((ids == segment["id"]).astype(np.uint8)))
                code["counts"] = code["counts"].decode()
                objects.append(
                    {**segment, "id": len(objects), "image_id": image_id, "segmentation": code}
                )
        Image.fromarray(labels).save(folder / "semantic" / f"{stem}.png")
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{stem}.png")
        entry = {"id": image_id, "file_name": f"{stem}.png", "height": size[0], "width": size[1]}
        images.append(entry)
        annotations.append(
            {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
        )
    categories: list[dict[str, Any]] = [
        {"id": k, "name": names[0], "names": list(names), "isthing": int(thing), "upstream_id": up}
        for k, (names, thing, up) in enumerate(zip(NAMES, THINGS, UPSTREAM, strict=True))
    ]
    panoptic = {"images": images, "annotations": annotations, "categories": categories}
    things = [category for category in categories if category["isthing"]]
    write_json(folder / "annotations.json", panoptic)
    write_json(
        folder / "instances.json",
        {"images": images, "annotations": objects, "categories": things},
    )
    manifest = {
        "format": FORMAT,
        "name": "toy",
        "split": "val",
        "image_root": "images",
        "vocabulary": [category["names"] for category in categories],
        "sha256": {
            "annotations": sha256_file(folder / "annotations.json"),
            "instances": sha256_file(folder / "instances.json"),
        },
        "content": hash_json(panoptic),
    }
    write_json(folder / "manifest.json", manifest)
    return ConvertedDataset.open(folder)


@pytest.fixture
def dataset(tmp_path: Path) -> ConvertedDataset:
    """The data set; in three images of six the last thing may be a crowd region."""
    return write_dataset(tmp_path / "toy")


@pytest.fixture
def settings_small() -> EvaluationOptions:
    """Few resamples, panopticapi's check on."""
    return EvaluationOptions(
        bootstrap_samples=40,
        bootstrap_seed=0,
        confidence=0.95,
        check_panopticapi=True,
        batch_size=4,
        compile="none",
        precision="fp32",
    )


@pytest.fixture
def written(dataset: ConvertedDataset, tmp_path: Path) -> Path:
    """The ground truth (crowd regions left void) written as predictions: the JSON."""
    writer = PredictionWriter(tmp_path / "predictions", dataset)
    for position, record in enumerate(dataset.images):
        ids = dataset.panoptic(position)
        for segment in record.segments:
            if segment.is_crowd:
                ids[ids == segment.id] = 0
        segments = {s.id: s.category for s in record.segments if not s.is_crowd}
        writer.add(record, ids, segments)
    writer.close()
    return writer.json


@pytest.fixture
def edit(written: Path) -> Callable[[Callable[[Any], Any]], None]:
    """``edit(change)`` rewrites the JSON of :func:`written`; ``change`` works on its content."""

    def apply(change: Callable[[Any], Any]) -> None:
        content = json.loads(written.read_text())
        change(content)
        written.write_text(json.dumps(content))

    return apply


@pytest.fixture
def labels(dataset: ConvertedDataset, tmp_path: Path) -> Path:
    """The semantic ground truth as a folder of label PNGs."""
    return Path(shutil.copytree(dataset.directory / "semantic", tmp_path / "labels"))
