"""Upstream-shaped annotations of one rendered scene: encoded images, segments, run lengths.

Rendering and encoding a scene is one picklable task, so that processes can share the work.
"""

import io
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

from possam.synthetic.scenes import Scene, Split, render_scene, scene_rng
from possam.synthetic.vocabulary import CLASSES, context_classes, domain_classes, domain_names

JPEG_QUALITY = 95
_VOID_SHARE = 0.1
_CROWD_SHARE = 0.3
_ID_STEP = 1_299_709
_ID_LIMIT = 2**24 - 1
ADE_FULL_FOLDER = "ADE20K_2021_17_01/images/ADE/validation/synthetic/scene"
"""The only folder of the full release's scenes."""
COCO_WARTS = ("grey", "cmyk", "exif", "duplicate", "crowds", "no_things", "zero_area")
ADE_WARTS = ("grey", "cmyk", "exif", "duplicate", "suffix", "unlabelled")
"""In upstream, the last of each occurs in train only."""
_SECOND_HALF = 255
_MAT_HEADER = 116
_MAT_TEXT = b"MATLAB 5.0 MAT-file, a procedural stand-in"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Scene ``index`` of a domain and split, with the number that its file names carry."""

    domain: Literal["a", "b"]
    split: Split
    seed: int
    index: int
    number: int
    wart: str | None = None
    """What is unusual about its files, as in upstream's (one of ``COCO_WARTS``, ``ADE_WARTS``)."""


@dataclass(frozen=True, kw_only=True)
class EncodedScene:
    """JPEG and label file of a scene (PASCAL Context's: MATLAB ``LabelMap``, uint16, 0 is void)."""

    number: int
    jpeg: bytes
    labels: bytes
    suffix: str = ".jpg"


@dataclass(frozen=True, kw_only=True)
class CocoScene(EncodedScene):
    """Panoptic PNG (id = R + 256 G + 65536 B), ``segments_info``, instance annotations."""

    segments: list[dict[str, Any]]
    instances: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class AdeScene(EncodedScene):
    """Semantic PNG (0 void, 1..K), instance PNG (R class, G instance), pixels per class."""

    instance: bytes
    pixels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AdeFullScene(EncodedScene):
    """Label PNG (ADE index = (R // 10) * 256 + G, B: object) and the content of the JSON."""

    objects: dict[str, Any]


def coco_category_ids() -> dict[int, int]:
    """World class index -> COCO-like category id: things from 1, stuff from 92, with gaps."""
    things, stuff = ([c for c in domain_classes("a") if c.is_thing == kind] for kind in (1, 0))
    ids = {c.index: 1 + k + k // 7 for k, c in enumerate(things)}
    return ids | {c.index: 92 + k + k // 3 for k, c in enumerate(stuff)}


def ade_indices() -> dict[int, int]:
    """World class index -> semantic index, 1 to K in the order of domain B's list."""
    return {c.index: k for k, c in enumerate(domain_classes("b"), start=1)}


def ade_instance_indices() -> dict[int, int]:
    """World class index of a thing -> instance class, 1 to T."""
    things = (c for c in domain_classes("b") if c.is_thing)
    return {c.index: k for k, c in enumerate(things, start=1)}


def ade_full_indices() -> dict[int, int]:
    """World class index -> ADE index of the full release: every class of the world, with gaps."""
    return {c.index: 17 + 37 * c.index for c in CLASSES}


def context_indices() -> dict[int, int]:
    """World class index -> label in PASCAL Context's stand-in, 1 to K."""
    return {c.index: k for k, c in enumerate(context_classes(), start=1)}


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run lengths of a mask (H, W): column-major, starting with the zeros."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    return ([0] if flat[0] else []) + np.diff(changes, prepend=0, append=flat.size).tolist()


def bounding_box(mask: npt.NDArray[np.bool_]) -> list[int]:
    """COCO's box (x, y, width, height) of a mask (H, W), which must not be empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]


def encode_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """PNG bytes of a grey (H, W) or RGB (H, W, 3) image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def encode_jpeg(pixels: npt.NDArray[np.uint8], wart: str | None = None) -> bytes:
    """JPEG bytes of an RGB image (H, W, 3) without chroma subsampling: classes differ by colour.

    ``wart``: ``grey``, ``cmyk`` or ``exif`` (a tag says that the picture lies on its side, although
    it is upright, as its labels are); anything else changes nothing.
    """
    stream, image, options = io.BytesIO(), Image.fromarray(pixels), dict[str, Any]()
    if wart in ("grey", "cmyk"):
        image = image.convert("L" if wart == "grey" else "CMYK")
    elif wart == "exif":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    image.save(stream, "JPEG", quality=JPEG_QUALITY, subsampling=0, **options)
    return stream.getvalue()


def _annotated_scene(task: Task) -> tuple[Scene, npt.NDArray[np.uint8], np.random.Generator]:
    """The scene, its ids (sometimes with an unlabelled patch), and the generator for more draws."""
    rng = scene_rng(seed=task.seed, domain=task.domain, split=task.split, index=task.index)
    scene = render_scene(rng, task.domain)
    ids = scene.ids.copy()
    if rng.random() < _VOID_SHARE:
        height, width = rng.integers(6, 17, 2)
        top, left = rng.integers(0, len(ids) - 17, 2)
        ids[top : top + height, left : left + width] = 0
    if task.wart == "unlabelled":
        ids[:] = 0
    if task.wart == "no_things":
        ids[np.isin(ids, [s.id for s in scene.segments if s.is_thing])] = 0
    return scene, ids, rng


def coco_scene(task: Task) -> CocoScene:
    """Render and annotate one scene in COCO's panoptic and instance formats.

    Things of one class are sometimes annotated together, as a crowd (``iscrowd`` 1). With the wart
    ``crowds``, the halves of the largest thing are two crowds of its class.
    """
    scene, ids, rng = _annotated_scene(task)
    categories = coco_category_ids()
    groups: dict[tuple[int, int], list[int]] = {}
    names = [s.class_index for s in scene.segments]
    merge = rng.random() < _CROWD_SHARE and task.wart != "crowds"
    for segment in scene.segments:
        crowd = merge and segment.is_thing and names.count(segment.class_index) > 1
        key = (segment.class_index, 0 if crowd else segment.id)
        groups.setdefault(key, []).append(segment.id)
    if task.wart == "crowds":
        thing = max((s for s in scene.segments if s.is_thing), key=lambda s: (ids == s.id).sum())
        columns = np.nonzero(ids == thing.id)[1]
        ids[(ids == thing.id) & (np.arange(len(ids)) > np.median(columns))] = _SECOND_HALF
        groups[thing.class_index, 0] = groups.pop((thing.class_index, thing.id))
        groups[thing.class_index, -1] = [_SECOND_HALF]
    panoptic = np.zeros(ids.shape, np.int64)
    segments, instances = [], []
    for position, ((class_index, number), members) in enumerate(groups.items(), start=1):
        mask = np.isin(ids, members)
        if not mask.any():
            continue
        segment_id = (task.number * 7919 + position * _ID_STEP) % _ID_LIMIT + 1
        panoptic[mask] = segment_id
        shared = {
            "area": int(mask.sum()),
            "category_id": categories[class_index],
            "iscrowd": int(number <= 0),
            "bbox": bounding_box(mask),
        }
        segments.append(shared | {"id": segment_id})
        if CLASSES[class_index].is_thing:
            code = {"counts": run_lengths(mask), "size": list(mask.shape)}
            instances.append(shared | {"image_id": task.number, "segmentation": code})
    if task.wart == "zero_area":
        instances.append(_flat_instance(instances[0]))
    parts = [(panoptic >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    return CocoScene(
        number=task.number,
        jpeg=encode_jpeg(scene.image, task.wart),
        labels=encode_png(np.stack(parts, axis=-1)),
        segments=segments,
        instances=instances,
    )


def _flat_instance(other: dict[str, Any]) -> dict[str, Any]:
    """An annotation of ``other``'s class whose polygon is a line, as two of COCO's train images."""
    left, top = other["bbox"][0] + 0.5, other["bbox"][1] + 0.25
    line = [left, top, left, top, left + 1.03, top, left + 1.03, top]
    flat = {"area": 0.0, "bbox": [left, top, 1.03, 0.0], "iscrowd": 0, "segmentation": [line]}
    return other | flat


def ade_scene(task: Task) -> AdeScene:
    """Render and annotate one scene as ADEChallengeData2016 and annotations_instance do."""
    scene, ids, _ = _annotated_scene(task)
    indices, instance_indices = ade_indices(), ade_instance_indices()
    semantic = np.zeros(ids.shape, np.uint8)
    instance = np.zeros((*ids.shape, 3), np.uint8)
    count = 0
    for segment in scene.segments:
        mask = ids == segment.id
        semantic[mask] = indices[segment.class_index]
        if segment.is_thing and mask.any():
            count += 1
            instance[mask] = (instance_indices[segment.class_index], count, 0)
    return AdeScene(
        number=task.number,
        jpeg=encode_jpeg(scene.image, task.wart),
        suffix=_suffix(task),
        labels=encode_png(semantic),
        instance=encode_png(instance),
        pixels=np.bincount(semantic.ravel(), minlength=len(indices) + 1),
    )


def ade_full_scene(task: Task) -> AdeFullScene:
    """Render and annotate one scene in the format of the full ADE20K release."""
    scene, ids, _ = _annotated_scene(task)
    indices = ade_full_indices()
    labels = np.zeros((*ids.shape, 3), np.uint8)
    objects: list[dict[str, Any]] = []
    for segment in scene.segments:
        mask = ids == segment.id
        if mask.any():
            index = indices[segment.class_index]
            labels[mask] = (index // 256 * 10, index % 256, 5 * (len(objects) + 1))
            objects.append(_ade_object(len(objects), segment.class_index, mask))
    return AdeFullScene(
        number=task.number,
        jpeg=encode_jpeg(scene.image, task.wart),
        suffix=_suffix(task),
        labels=encode_png(labels),
        objects={
            "annotation": {
                "filename": f"ADE_val_{task.number:08d}{_suffix(task)}",
                "folder": ADE_FULL_FOLDER,
                "imsize": [*ids.shape, 3],
                "source": {"folder": "", "filename": "", "origin": "rendered"},
                "scene": ["synthetic", "scene"],
                "object": objects,
            }
        },
    )


def _suffix(task: Task) -> str:
    return ".JPG" if task.wart == "suffix" else ".jpg"


def _ade_object(number: int, class_index: int, mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """One entry of ``annotation.object``; the polygon joins the first and last pixels of rows."""
    rows = np.flatnonzero(mask.any(1))
    left, right = mask[rows].argmax(1), mask.shape[1] - 1 - mask[rows, ::-1].argmax(1)
    names = domain_names("b", CLASSES[class_index])
    return {
        "id": number,
        "name": ", ".join(names),
        "name_ndx": ade_full_indices()[class_index],
        "hypernym": [],
        "raw_name": names[0],
        "attributes": [],
        "depth_ordering_rank": number + 1,
        "occluded": "no",
        "crop": "0",
        "parts": {"hasparts": [], "ispartof": [], "part_level": 0},
        "polygon": {
            "x": [*left.tolist(), *right[::-1].tolist()],
            "y": [*rows.tolist(), *rows[::-1].tolist()],
        },
    }


def context_scene(task: Task) -> EncodedScene:
    """Render and annotate one scene in the format of PASCAL Context."""
    scene, ids, _ = _annotated_scene(task)
    indices = context_indices()
    labels = np.zeros(ids.shape, np.uint16)
    for segment in scene.segments:
        labels[ids == segment.id] = indices[segment.class_index]
    return EncodedScene(number=task.number, jpeg=encode_jpeg(scene.image), labels=_mat(labels))


def _mat(labels: npt.NDArray[np.uint16]) -> bytes:
    """A MATLAB file with the variable ``LabelMap``."""
    stream = io.BytesIO()
    savemat(stream, {"LabelMap": labels}, do_compression=True)
    # The header is free text, into which scipy writes the time; equal labels must give equal bytes.
    return _MAT_TEXT.ljust(_MAT_HEADER) + stream.getvalue()[_MAT_HEADER:]
