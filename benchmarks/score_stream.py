"""A converted data set of any length, and predictions for it, from a few label maps on disk."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from possam.datasets.format import Category, ConvertedDataset, ImageRecord, Segment
from possam.datasets.pixels import encode_ids, encode_semantic, write_png
from possam.runtime.files import write_json

SIZE = (512, 683)
"""Height and width of most of ADE20K's images."""

SEGMENTS = 20
SHIFT = (6, 4)
"""Pixels by which a prediction is shifted down and right of the ground truth."""

DISTINCT = 25
"""Label maps on disk; a longer stream reads them again, so that only its length grows."""


def write_stream(folder: Path, *, images: int, classes: int, seed: int) -> ConvertedDataset:
    """Write label maps below ``folder``; the data set has ``images`` records that name them.

    Photographs are not written: scoring reads none.
    """
    rng = np.random.default_rng(seed)
    distinct = []
    for number in range(min(DISTINCT, images)):
        ids = _regions(rng)
        classes_of = rng.integers(0, classes, SEGMENTS)
        name = f"{number:04d}.png"
        write_png(_made(folder / "panoptic") / name, encode_ids(ids))
        labels = classes_of[ids - 1]
        write_png(_made(folder / "semantic") / name, encode_semantic(labels, classes))
        write_png(_made(folder / "predicted") / name, encode_ids(np.roll(ids, SHIFT, (0, 1))))
        segments = tuple(
            Segment(
                id=key,
                category=int(classes_of[key - 1]),
                area=int((ids == key).sum()),
                bbox=(0, 0, SIZE[1], SIZE[0]),
                is_crowd=False,
            )
            for key in range(1, SEGMENTS + 1)
        )
        distinct.append((name, segments))
    records = []
    for number in range(images):
        name, segments = distinct[number % len(distinct)]
        records.append(
            ImageRecord(
                id=number + 1,
                file=folder / "images" / name,
                width=SIZE[1],
                height=SIZE[0],
                panoptic=folder / "panoptic" / name,
                semantic=folder / "semantic" / name,
                segments=segments,
            )
        )
    return ConvertedDataset(
        directory=folder,
        image_root=folder / "images",
        manifest={"name": "stream", "split": "val", "content": f"{images} images, seed {seed}"},
        categories=tuple(
            Category(index=k, names=(f"class {k}",), is_thing=k % 2 == 0, upstream_id=k)
            for k in range(classes)
        ),
        images=records,
    )


def write_predictions(path: Path, dataset: ConvertedDataset) -> Path:
    """Write the JSON of predictions for the images of ``dataset``; their PNGs exist already.

    Segments keep their classes, except every fifth, which gets the next one.
    """
    classes = len(dataset.categories)
    write_json(
        path,
        {
            "annotations": [
                {
                    "image_id": record.id,
                    "file_name": record.panoptic.name,
                    "segments_info": [
                        {"id": s.id, "category_id": (s.category + (s.id % 5 == 0)) % classes}
                        for s in record.segments
                    ],
                }
                for record in dataset.images
            ],
            "categories": [{"id": category.index} for category in dataset.categories],
        },
        indent=None,
    )
    return path


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _regions(rng: np.random.Generator) -> NDArray[np.int32]:
    """Ids 1..SEGMENTS (H, W): the pixels nearest to each of as many random points."""
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    best = np.full(SIZE, np.inf)
    ids = np.zeros(SIZE, np.int32)
    for key in range(1, SEGMENTS + 1):
        y, x = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1])
        distance = (rows - y) ** 2 + (columns - x) ** 2
        nearer = distance < best
        best[nearer], ids[nearer] = distance[nearer], key
    return ids
