"""COCO panoptic and instance annotations.

Panoptic PNGs are kept bit for bit. In the semantic map every pixel has the class of its segment,
crowds included, as in COCO's common preparation. Areas and boxes are computed from the PNG.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.datasets.catalogue import FolderLayout, UpstreamDataset, many_files, one_file
from possam.datasets.class_names import read_class_index
from possam.datasets.records import UPSTREAM_INSTANCES, Category, Converted, Segment, Source, Task
from possam.runtime.errors import InputError
from possam.runtime.files import read_json

if TYPE_CHECKING:
    from possam.datasets.pixels import Array

_MAX_ID = 1 << 24
_SPLITS = {"train": "train2017", "val": "val2017"}


def _read_parts(parts: Mapping[str, Path], name: str, *, complete: bool = True) -> Source:
    """Read split ``name`` (upstream's); unless ``complete``, the instances file may be missing."""
    instances = parts["instances"] / f"annotations/instances_{name}.json"
    return read_coco(
        images=parts["images"] / name,
        panoptic_json=parts["panoptic"] / f"annotations/panoptic_{name}.json",
        panoptic_png=parts["panoptic"] / f"annotations/panoptic_{name}",
        instances_json=instances if complete or instances.is_file() else None,
        class_names=parts["class_names"],
    )


def _images_on_disk(split: str) -> dict[str, Any]:
    name = _SPLITS[split]
    part = many_files(name, f"images/{name}", suffix=".jpg", exactly=f"coco.{split}")
    return {"root": "coco", "parts": [part]}


def _maps_on_disk(split: str) -> dict[str, Any]:
    folder, files = f"panoptic_{_SPLITS[split]}", {"suffix": ".png", "content": True}
    return many_files(f"annotations/{folder}", folder, exactly=f"coco.{split}", **files)


def _json_on_disk(kind: str) -> list[dict[str, Any]]:
    return [one_file(f"annotations/{kind}_{name}.json") for name in _SPLITS.values()]


DECLARATION = UpstreamDataset(
    images={"train": 118287, "val": 5000},
    metrics=("panoptic", "instance", "semantic"),
    roles={
        "images": "coco_{split}_images",
        "panoptic": "coco_panoptic",
        "instances": "coco_instances",
        "class_names": "coco_class_names",
    },
    read=lambda parts, split: _read_parts(parts, _SPLITS[split]),
    folder=FolderLayout(
        root="it holds the split's images, and annotations/ with panoptic_<split>{.json,/} and, if "
        "there is one, instances_<split>.json",
        splits={name: name for name in _SPLITS.values()},
        read=lambda root, split, class_names: _read_parts(
            {"images": root, "panoptic": root, "instances": root, "class_names": class_names},
            split, complete=False,
        ),
    ),
    on_disk={
        "coco_train_images": _images_on_disk("train"),
        "coco_val_images": _images_on_disk("val"),
        "coco_panoptic": {
            "root": "coco",
            "parts": [*_json_on_disk("panoptic"), *map(_maps_on_disk, _SPLITS)],
        },
        "coco_instances": {"root": "coco", "parts": _json_on_disk("instances")},
    },
)  # fmt: skip


def read_coco(
    *,
    images: Path,
    panoptic_json: Path,
    panoptic_png: Path,
    instances_json: Path | None,
    class_names: Path,
) -> Source:
    """Images and classes of one split of COCO, or of any data set in its layout.

    Args:
        images: folder of JPEGs; every image that ``panoptic_json`` lists must be there.
        panoptic_json, panoptic_png: panoptic annotations, and the folder of their PNGs.
        instances_json: instance annotations; those of images that ``panoptic_json`` does not list
            are left out. None: instances are the thing segments of the panoptic maps.
        class_names: class-name file whose indices are the JSON's category ids, in the same order.

    Raises:
        InputError: an unreadable or faulty file, or files that do not belong together.
    """
    data = _read(panoptic_json, ("images", "annotations", "categories"))
    categories = _categories(data["categories"], panoptic_json, class_names)
    records = _unique(data["images"], "id", panoptic_json, "images")
    _unique(data["images"], "file_name", panoptic_json, "images")
    annotations = _unique(data["annotations"], "image_id", panoptic_json, "annotations")
    _match(records, annotations, panoptic_json, images)
    instances, skipped = _instances(instances_json, set(records), categories)
    tasks = []
    for key, record in records.items():
        annotation = annotations[key]
        png = panoptic_png / _plain(annotation, "file_name", panoptic_json)
        payload = {
            "width": _get(record, "width", panoptic_json, "images"),
            "height": _get(record, "height", panoptic_json, "images"),
            "segments": _get(annotation, "segments_info", panoptic_json, "annotations"),
            "instances": instances.get(key, []) if instances is not None else None,
        }
        image = images / record["file_name"]
        if png.name != f"{image.stem}.png":
            raise InputError(
                f"{panoptic_json}: annotations.file_name {png.name!r} of image {key} should be "
                f"'{image.stem}.png'; the JSON does not belong to these images"
            )
        tasks.append(Task(id=key, image=image, sources=(png,), payload=payload))
    origin = "panoptic segments" if instances_json is None else UPSTREAM_INSTANCES
    if skipped:
        origin += f" ({skipped} of other images left out)"
    return Source(
        tasks=tasks,
        converter=partial(
            _convert, categories=categories, json_name=panoptic_json, instances_name=instances_json
        ),
        categories=categories,
        image_root=images,
        instances=origin,
    )


def _get(entry: Any, key: str, path: Path | str, where: str) -> Any:
    if not isinstance(entry, dict) or key not in entry:
        raise InputError(f"{path}: {where}: an entry has no {key!r}; fetch the file again")
    return entry[key]


def _plain(entry: Any, key: str, path: Path) -> str:
    name = _get(entry, key, path, "annotations")
    if not isinstance(name, str) or Path(name).name != name or not name:
        raise InputError(f"{path}: {key} {name!r} is not a plain file name; fetch the file again")
    return name


def _read(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    data = read_json(path)
    for key in keys:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise InputError(f"{path}: no list {key!r}; this is not a COCO annotation file")
    return dict(data)


def _unique(entries: Sequence[Any], key: str, path: Path, where: str) -> dict[Any, dict[str, Any]]:
    """``entries`` by the value of ``key``; InputError if a value comes twice."""
    result: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        value = _get(entry, key, path, where)
        if key == "file_name":
            _plain(entry, key, path)
        elif isinstance(value, bool) or not isinstance(value, int):
            raise InputError(f"{path}: {where}: {key} {value!r} is not a whole number")
        if value in result:
            raise InputError(
                f"{path}: {where}: {key} {value!r} comes twice; remove one, or fetch the file again"
            )
        result[value] = entry
    return result


def _categories(entries: Sequence[Any], path: Path, class_names: Path) -> list[Category]:
    upstream = _unique(entries, "id", path, "categories")
    names = read_class_index(class_names)
    if list(upstream) != list(names):
        only_json = [key for key in upstream if key not in names]
        only_names = [key for key in names if key not in upstream]
        raise InputError(
            f"{class_names}: its {len(names)} indices are not the {len(upstream)} category ids of "
            f"{path}, in the same order (only in the JSON: {only_json[:5]}, only in the names: "
            f"{only_names[:5]}); use the class names of this data set"
        )
    categories = []
    for position, (key, entry) in enumerate(upstream.items()):
        is_thing = _get(entry, "isthing", path, "categories")
        if is_thing not in (0, 1):
            raise InputError(f"{path}: categories: isthing of {key} is {is_thing!r}, not 0 or 1")
        categories.append(
            Category(index=position, names=names[key], is_thing=bool(is_thing), upstream_id=key)
        )
    return categories


def _match(
    records: Mapping[int, Any], annotations: Mapping[int, Any], path: Path, folder: Path
) -> None:
    """Check that every image has an annotation and a file, from one listing of the folder."""
    if missing := records.keys() - annotations.keys():
        raise InputError(
            f"{path}: image {min(missing)} has no annotation ({len(missing)} such images); fetch "
            "the file again, or remove the images from the list"
        )
    if strange := annotations.keys() - records.keys():
        raise InputError(
            f"{path}: annotations: image_id {min(strange)} is not in images ({len(strange)} such "
            "annotations); fetch the file again"
        )
    try:
        present = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise InputError(
            f"{folder}: no folder of images ({error.strerror}); unpack them"
        ) from error
    if lost := sorted({record["file_name"] for record in records.values()} - present):
        raise InputError(
            f"{folder / lost[0]}: listed in {path} but missing ({len(lost)} such images); unpack "
            "the images of this split again"
        )


def _instances(
    path: Path | None, images: set[int], categories: Sequence[Category]
) -> tuple[dict[int, list[dict[str, Any]]] | None, int]:
    """Upstream instance annotations by image (None without a file), and how many were left out."""
    if path is None:
        return None, 0
    data = _read(path, ("images", "annotations", "categories"))
    things = {c.upstream_id: c.index for c in categories if c.is_thing}
    grouped, skipped = defaultdict[int, list[dict[str, Any]]](list), 0
    for key, entry in _unique(data["annotations"], "id", path, "annotations").items():
        category = _get(entry, "category_id", path, "annotations")
        if category not in things:
            raise InputError(
                f"{path}: annotation {key}: category_id {category} is no thing class of the "
                "panoptic annotations; the two files must be of one release"
            )
        image = _get(entry, "image_id", path, "annotations")
        if image not in images:
            skipped += 1
            continue
        fields = ("area", "bbox", "iscrowd", "segmentation")
        kept = {name: _get(entry, name, path, "annotations") for name in fields}
        grouped[image].append({"id": key, "category_id": things[category], **kept})
    return grouped, skipped


def _convert(
    task: Task,
    *,
    categories: Sequence[Category],
    json_name: Path,
    instances_name: Path | None,
) -> Converted:
    from possam.datasets.images import check_photo, things_as_instances
    from possam.datasets.pixels import class_map, read_ids

    payload, png = task.payload, task.sources[0]
    photo_size, image_sha256 = check_photo(task.image)
    ids = read_ids(png)
    size = (payload["height"], payload["width"])
    for path, shape in ((task.image, photo_size), (png, ids.shape)):
        if shape != size:
            raise InputError(
                f"{path}: {shape[1]}x{shape[0]} pixels, but {json_name} says {size[1]}x{size[0]} "
                f"for image {task.id}; unpack image and annotation again"
            )
    index = {category.upstream_id: category.index for category in categories}
    segments = _segments(ids, payload["segments"], index, f"{json_name}: image {task.id}", png)
    semantic = class_map(ids, {segment.id: segment.category for segment in segments})
    if payload["instances"] is None:
        instances = things_as_instances(ids, segments, categories)
    else:
        instances = [
            _instance(entry, *size, f"{instances_name}: annotation {entry['id']}")
            for entry in payload["instances"]
        ]
    return Converted(
        image=image_sha256,
        ids=ids,
        semantic=semantic,
        segments=segments,
        instances=instances,
        panoptic_png=png.read_bytes(),
    )


def _segments(
    ids: Array, entries: Any, index: Mapping[int, int], where: str, png: Path
) -> tuple[Segment, ...]:
    """Segments in the JSON's order, with areas and boxes computed from the PNG."""
    from possam.datasets.label_runs import segment_table

    counted = {key: (area, box) for key, area, box in segment_table(ids)}
    segments: dict[int, Segment] = {}
    for entry in entries:
        key = _get(entry, "id", where, "segments_info")
        category = _get(entry, "category_id", where, "segments_info")
        if key in segments:
            raise InputError(f"{where}: segment id {key} comes twice; fetch the file again")
        if category not in index:
            raise InputError(
                f"{where}: segment {key}: unknown category_id {category}; the segment's class must "
                "be in 'categories'"
            )
        if not isinstance(key, int) or not 0 < key < _MAX_ID or key not in counted:
            raise InputError(
                f"{where}: segment {key} has no pixel in {png}; JSON and PNGs must be of "
                "one release"
            )
        (area, box), crowd = counted[key], bool(entry.get("iscrowd", 0))
        segments[key] = Segment(
            id=key, category=index[category], area=area, bbox=box, is_crowd=crowd
        )
    if strange := sorted(counted.keys() - segments.keys()):
        raise InputError(
            f"{png}: segment id {strange[0]} is not in segments_info of {where} ({len(strange)} "
            "such ids); JSON and PNGs must be of one release"
        )
    return tuple(segments.values())


def _instance(entry: dict[str, Any], height: int, width: int, where: str) -> dict[str, Any]:
    """An upstream instance with its polygons or RLE as compressed RLE."""
    from pycocotools import mask as run_length

    mask = entry["segmentation"]
    try:
        if isinstance(mask, list):
            mask = run_length.merge(run_length.frPyObjects(mask, height, width))
        elif isinstance(mask["counts"], list):
            mask = run_length.frPyObjects(mask, height, width)
        if list(mask["size"]) != [height, width]:
            raise ValueError(f"size {mask['size']}, the image has {[height, width]}")
        text = str(mask["counts"], "ascii") if isinstance(mask["counts"], bytes) else mask["counts"]
        text.encode("ascii")
    except Exception as error:  # pycocotools raises bare Exception on shapes that it does not know
        raise InputError(
            f"{where}: segmentation cannot be read ({error}); fetch the file again"
        ) from error
    kept = {key: entry[key] for key in ("category_id", "area", "bbox", "iscrowd")}
    return {**kept, "segmentation": {"size": [height, width], "counts": text}}
