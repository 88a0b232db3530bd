"""Check that a converted data set is consistent: every count, id, area, size and hash."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as run_length

from possam.datasets.conversion import CHUNK
from possam.datasets.format import (
    IMAGES,
    INSTANCES,
    PANOPTIC,
    SEMANTIC,
    ConvertedDataset,
    ImageRecord,
)
from possam.datasets.images import check_photo
from possam.datasets.label_runs import segment_table
from possam.datasets.pixels import Array, class_map, decode_file, decode_ids, decode_semantic
from possam.datasets.records import UPSTREAM_INSTANCES
from possam.runtime.errors import InputError
from possam.runtime.pools import in_chunks
from possam.runtime.progress import Progress

_SHOWN = 20


def validate_dataset(
    directory: Path,
    *,
    workers: int = 1,
    more: Callable[[ConvertedDataset], list[str]] | None = None,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """Check everything that a converted data set promises.

    Files, hashes, counts and label histogram are those of the manifest; image ids and files are
    unique; image, panoptic and semantic map have one size; each PNG and the JSON have the same ids,
    areas and boxes; class indices are in range; both maps agree on stuff; instances have a thing
    class, their image's size and their mask's area (upstream annotations: any area, also 0); at
    least half of the images have a labelled pixel, and at least half have a segment, unless
    ``allow_empty``. ``more``: further checks of this data set; returns one message per fault.

    Returns:
        ``counts`` (the manifest's), and what is unusual but no fault: ``void_images`` (ids of those
        without a labelled pixel), ``empty_images`` (without a segment) and ``absent_classes``.

    Raises:
        InputError: one line per fault (the first twenty, and how many more there are).
        PossamError: a worker died.
    """
    directory = Path(directory)
    dataset = ConvertedDataset.open(directory)
    faults = _static_faults(dataset) + ([] if more is None else more(dataset))
    size = len(dataset.categories)
    pixels, segments = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    void_pixels, void_images = 0, []
    empty_images = [record.id for record in dataset.images if not record.segments]
    is_thing = np.array([category.is_thing for category in dataset.categories], dtype=bool)
    hashes = {key: hashlib.sha256() for key in (PANOPTIC, SEMANTIC, IMAGES)}
    label = f"validate {dataset.name} {dataset.split}"
    check = partial(_check_chunk, is_thing=is_thing)
    found = in_chunks(check, dataset.images, workers=workers, chunk=CHUNK, preload=__name__)
    with Progress(len(dataset), label=label, unit="images") as progress:
        for record, result in chain.from_iterable(results for _, results in found):
            faults += result["faults"]
            for key, digest in hashes.items():
                digest.update(f"{record.panoptic.name} {result['hashes'].get(key)}\n".encode())
            if (counts := result.get("pixels")) is not None:
                void_pixels += int(counts[-1])
                pixels += counts[:-1]
                if not counts[:-1].any():
                    void_images.append(record.id)
            for segment in record.segments:
                if 0 <= segment.category < size:  # _check_image names the others
                    segments[segment.category] += 1
            progress.update()
    for key, digest in hashes.items():
        if digest.hexdigest() != dataset.manifest["sha256"][key]:
            faults.append(f"{directory}: {key} files are not those that were converted")
    recounted = {
        "pixels": pixels.tolist(),
        "segments": segments.tolist(),
        "instances": _instance_faults(dataset, faults),
        "void_pixels": void_pixels,
    }
    unlabelled = dataset.manifest.get("warts", {}).get("unlabelled", {}).get("images", 0)
    if unlabelled != len(void_images):
        faults.append(f"{directory}/manifest.json: warts.unlabelled does not match the files")
    for key, value in recounted.items():
        if value != dataset.manifest["histogram"][key]:
            faults.append(f"{directory}/manifest.json: histogram.{key} does not match the files")
    for what, ids in (("labelled pixel", void_images), ("segment", empty_images)):
        if 2 * len(ids) > len(dataset) and not allow_empty:
            faults.append(
                f"{directory}: {len(ids)} of {len(dataset)} images have no {what}; the class table "
                "or the labels are of another release (if it is meant: convert-files --allow-empty)"
            )
    if faults:
        rest = [f"... and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        remedy = f"{directory}: convert the data set again"
        raise InputError("\n".join([*faults[:_SHOWN], *rest, remedy]))
    absent = [c.names[0] for c, n in zip(dataset.categories, pixels, strict=True) if not n]
    return {
        "counts": dict(dataset.manifest["counts"]),
        "void_images": void_images,
        "empty_images": empty_images,
        "absent_classes": absent,
    }


def _static_faults(dataset: ConvertedDataset) -> list[str]:
    """Faults that can be found without reading pixels."""
    where, faults = str(dataset.directory), []
    if [category.index for category in dataset.categories] != list(range(len(dataset.categories))):
        faults.append(f"{where}: category ids are not 0..K-1 in order")
    if not all(all(category.names) and category.names for category in dataset.categories):
        faults.append(f"{where}: a category has no name")
    records = dataset.images
    for key, field in (("image id", "id"), ("image file", "file"), ("panoptic file", "panoptic")):
        if len({getattr(record, field) for record in records}) != len(records):
            faults.append(f"{where}: an {key} comes twice")
    thing_ids = {category.index for category in dataset.categories if category.is_thing}
    things = sum(segment.category in thing_ids for r in records for segment in r.segments)
    total = sum(len(record.segments) for record in records)
    counts = {
        "images": len(records),
        "segments": total,
        "things": things,
        "stuff": total - things,
        "crowd": sum(segment.is_crowd for record in records for segment in record.segments),
    }
    for key, value in counts.items():
        if dataset.manifest["counts"][key] != value:
            faults.append(f"{where}/manifest.json: counts.{key} is not {value}")
    expected = {
        folder: {record.panoptic.name for record in records} for folder in (PANOPTIC, SEMANTIC)
    }
    if dataset.manifest["image_root"] == IMAGES:
        expected[IMAGES] = {record.file.name for record in records}
    for folder, names in expected.items():
        present = {path.name for path in (dataset.directory / folder).iterdir()}
        if strange := sorted(present - names):
            faults.append(
                f"{where}/{folder}/{strange[0]}: belongs to no image ({len(strange)} such)"
            )
    return faults


def _check_chunk(
    records: Sequence[ImageRecord], *, is_thing: Array
) -> list[tuple[ImageRecord, dict[str, Any]]]:
    return [(record, _check_image(record, is_thing)) for record in records]


def _check_image(record: ImageRecord, is_thing: Array) -> dict[str, Any]:
    num_classes = len(is_thing)
    faults: list[str] = []
    result: dict[str, Any] = {"faults": faults, "hashes": {}}
    size = (record.height, record.width)
    try:
        photo_size, result["hashes"][IMAGES] = check_photo(record.file)
        pixels, result["hashes"][PANOPTIC] = decode_file(record.panoptic)
        ids = decode_ids(pixels, record.panoptic)
        pixels, result["hashes"][SEMANTIC] = decode_file(record.semantic)
        labels = decode_semantic(pixels, num_classes, record.semantic)
    except InputError as error:
        faults.append(str(error))
        return result
    paths = (record.file, record.panoptic, record.semantic)
    for path, shape in zip(paths, (photo_size, ids.shape, labels.shape), strict=True):
        if shape != size:
            faults.append(f"{path}: {shape[1]}x{shape[0]} pixels, not {size[1]}x{size[0]}")
    found = {key: (area, box) for key, area, box in segment_table(ids)}
    listed = {s.id: (s.area, s.bbox) for s in record.segments}
    if len(listed) != len(record.segments):
        faults.append(f"{record.panoptic}: a segment id comes twice in the JSON")
    for key in sorted(found.keys() ^ listed.keys())[:1]:
        place = "the PNG" if key in found else "the JSON"
        faults.append(f"{record.panoptic}: segment {key} is only in {place}")
    for key in sorted(found.keys() & listed.keys()):
        if found[key] != listed[key]:
            faults.append(
                f"{record.panoptic}: segment {key}: area and box {listed[key]} in the JSON, "
                f"{found[key]} in the PNG"
            )
    for segment in record.segments:
        if not 0 <= segment.category < num_classes:
            faults.append(f"{record.panoptic}: segment {segment.id}: no class {segment.category}")
    if not faults and (count := _disagreeing(ids, labels, record, is_thing)):
        faults.append(
            f"{record.panoptic}: the classes of {count} pixels are not those of {record.semantic}"
        )
    result["pixels"] = np.bincount(
        np.where(labels < 0, num_classes, labels).ravel(), minlength=num_classes + 1
    )
    return result


def _disagreeing(ids: Array, labels: Array, record: ImageRecord, is_thing: Array) -> int:
    """Number of pixels on which the maps disagree and no instance is the reason.

    Instances may cover other classes, and a pixel of a thing class without an instance is void.
    """
    classes = class_map(ids, {segment.id: segment.category for segment in record.segments})
    thing = np.append(is_thing, False)  # the last one is for void, -1
    allowed = thing[classes] | ((classes < 0) & thing[labels])
    return int(((classes != labels) & ~allowed).sum())


def _instance_faults(dataset: ConvertedDataset, faults: list[str]) -> list[int]:
    """Append the faults of ``instances.json`` to ``faults``; returns the instances per class."""
    path, counts = dataset.directory / INSTANCES, [0] * len(dataset.categories)
    things = {category.index for category in dataset.categories if category.is_thing}
    sizes = {record.id: [record.height, record.width] for record in dataset.images}
    counted = not dataset.manifest["instances"].startswith(UPSTREAM_INSTANCES)
    seen: set[int] = set()
    for entry in dataset.instances()["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        if entry["id"] in seen or entry["id"] < 1:
            faults.append(f"{where}: ids must be positive, each once")
        seen.add(entry["id"])
        if entry["category_id"] not in things:
            faults.append(f"{where}: category {entry['category_id']} is no thing class")
            continue
        counts[entry["category_id"]] += 1
        mask = entry["segmentation"]
        if sizes.get(entry["image_id"]) != mask["size"]:
            faults.append(f"{where}: size {mask['size']} is not that of image {entry['image_id']}")
        area = int(run_length.area({"size": mask["size"], "counts": mask["counts"].encode()}))
        if entry["area"] < 0 or (counted and not 0 < area == entry["area"]):
            faults.append(f"{where}: area {entry['area']}, the mask has {area}")
    if len(seen) != dataset.manifest["counts"]["instances"]:
        faults.append(f"{path}: holds {len(seen)} instances, the manifest says otherwise")
    return counts
