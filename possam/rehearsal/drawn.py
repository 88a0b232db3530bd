"""What a rehearsal draws where the real thing is not here yet: weights, and a small data set.

Shapes, sizes and the code that reads and computes are those of the study; only values are drawn.
"""

import io
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from possam.datasets.conversion import convert
from possam.datasets.format import MANIFEST, ConvertedDataset
from possam.datasets.images import find_segments, things_as_instances
from possam.datasets.pixels import class_map, write_bytes
from possam.datasets.records import Category, Converted, Source, Task
from possam.model.encoders.clip import FrozenClip, load_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
from possam.params.layout import Layout
from possam.params.scale import RunParams
from possam.stages.common import clip_config
from possam.stages.models import load_clip_tower, load_sam_tower

IMAGES = 16
GRID = (3, 4)
"""Rows and columns of segments of a drawn image: twelve, about as many as COCO has."""

_PHOTOGRAPH = (480, 640)
"""Height and width of most of COCO's photographs."""

_WORDS = ("red", "old", "small", "wooden", "striped", "round", "paper", "quiet", "steel", "green")
_NOUNS = (
    *("cup", "lake", "door", "horse", "street", "lamp", "shirt", "hill", "boat", "table", "rug"),
    *("fence", "bread", "wheel", "roof"),
)
CLASSES = len(_WORDS) * len(_NOUNS)
"""150, as many as ADE20K has, the larger of the paper's training sets."""


def towers(layout: Layout, sam: str | None) -> tuple[SamEncoder | None, FrozenClip, list[str]]:
    """The frozen towers of a training, on the CPU, and the names of those that were drawn.

    A tower whose file was fetched is loaded; any other gets the same drawn weights in every call.
    """
    own, drawn = layout.project.scale.towers, []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        clip_asset = own.clip.asset
        if clip_asset is not None and layout.asset_record(clip_asset).is_file():
            clip = load_clip_tower(layout)
        else:
            clip = load_clip(config=clip_config(layout), checkpoint=None, random_init=True)
            drawn.append(own.clip.config)
        if sam is None:
            return None, clip, drawn
        if layout.asset_record(own.sam[sam].asset).is_file():
            return load_sam_tower(layout, sam), clip, drawn
        architecture = find_architecture(own.sam[sam].architecture)
        drawn.append(architecture.name)
        return SamEncoder(build_sam(architecture).image_encoder), clip, drawn


def dataset(folder: Path, run: RunParams) -> ConvertedDataset:
    """A converted data set of :data:`IMAGES` drawn images; made unless it is in ``folder``.

    Images have the size of photographs where training crops them, else the size that it needs.
    """
    augmentation = run.training.augmentation
    size = _PHOTOGRAPH if augmentation.policy == "lsj" else (augmentation.size, augmentation.size)
    out = folder / f"{size[0]}x{size[1]}"
    if not (out / MANIFEST).is_file():
        photographs = folder / "photographs"
        photographs.mkdir(parents=True, exist_ok=True)
        tasks = [
            Task(id=i + 1, image=photographs / f"{i:02d}.jpg", sources=()) for i in range(IMAGES)
        ]
        for task in tasks:
            write_bytes(task.image, _photograph(task.id, size))
        source = Source(
            tasks=tasks,
            converter=partial(_convert, size=size),
            categories=_categories(),
            image_root=photographs,
            instances="drawn",
        )
        convert(source, name="drawn", split="train", out=out, workers=1)
    return ConvertedDataset.open(out)


def _photograph(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG of smooth noise, which takes about as long to decode as a photograph."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(content, "JPEG")
    return content.getvalue()


def _categories() -> list[Category]:
    names = [f"{word} {noun}" for noun in _NOUNS for word in _WORDS]
    return [
        Category(index=index, names=(name, f"a {name}"), is_thing=index % 2 == 0, upstream_id=index)
        for index, name in enumerate(names)
    ]


def _convert(task: Task, *, size: tuple[int, int]) -> Converted:
    rows, columns = (
        np.arange(side) * parts // side for side, parts in zip(size, GRID, strict=True)
    )
    ids = (1 + rows[:, None] * GRID[1] + columns).astype(np.int32)
    classes = {number: (number * 7 + task.id * 13) % CLASSES for number in np.unique(ids).tolist()}
    segments = find_segments(ids, classes.__getitem__)
    return Converted(
        image="drawn",
        ids=ids,
        semantic=class_map(ids, classes),
        segments=segments,
        instances=things_as_instances(ids, segments, _categories()),
    )
