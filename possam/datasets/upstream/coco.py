"""COCO panoptic and instance annotations, and Cityscapes' and Mapillary Vistas' in this format.

Panoptic PNGs are kept bit for bit. In the semantic map every pixel has the class of its segment,
crowds included, as in COCO's common preparation. Areas and boxes are computed from the PNG.
Instance annotations are kept as published, also those of area 0, as COCO's own evaluation does.

The JSON files and the lists of images are checked before the first image is converted.

Cityscapes (createPanopticImgs.py of its scripts) and Mapillary Vistas have texts as image ids; the
images get numbers in the JSON's order. Cityscapes' JSON calls photographs
``<id>_gtFine_leftImg8bit.png`` that are ``<city>/<id>_leftImg8bit.png`` on disk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from possam.datasets.catalogue import FolderLayout, UpstreamDataset, many_files, one_file
from possam.datasets.class_names import check_numbering, name_keys, read_class_index
from possam.datasets.coco_files import (
    find_coco,
    find_photo,
    match_names,
    number_annotations,
    number_images,
)
from possam.datasets.coco_json import (
    CATEGORY,
    check_instance,
    check_segments,
    get,
    image_size,
    json_categories,
    plain_name,
    read_lists,
    unique,
)
from possam.datasets.files import Folder, locate, stray_files
from possam.datasets.json_fields import ID, check_fields
from possam.datasets.records import UPSTREAM_INSTANCES, Category, Converted, Segment, Source, Task
from possam.runtime.errors import InputError

if TYPE_CHECKING:
    from possam.datasets.pixels import Array

_SPLITS = {"train": "train2017", "val": "val2017"}


def _read_parts(parts: Mapping[str, Path], name: str) -> Source:
    """Read split ``name`` (upstream's) of the official release."""
    return read_coco(
        images=parts["images"] / name,
        panoptic_json=parts["panoptic"] / f"annotations/panoptic_{name}.json",
        panoptic_png=parts["panoptic"] / f"annotations/panoptic_{name}",
        instances_json=parts["instances"] / f"annotations/instances_{name}.json",
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
        "there is one, instances_<split>.json; or the folders of Cityscapes or Mapillary Vistas",
        splits={name: name for name in _SPLITS.values()},
        read=lambda root, split, class_names: read_coco(
            **find_coco(root, split), class_names=class_names
        ),
        read_parts=lambda **files: read_coco(**files),
        parts={
            "images": True,
            "panoptic_json": True,
            "panoptic_png": False,
            "instances_json": False,
        },
        names_classes=True,
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
    panoptic_png: Path | None = None,
    instances_json: Path | None = None,
    class_names: Path | None,
) -> Source:
    """Images and classes of one split of COCO, or of any data set in its layout.

    Args:
        images: folder of photographs, which may lie in its subfolders; every image that
            ``panoptic_json`` lists must be there.
        panoptic_json, panoptic_png: panoptic annotations, and the folder of their PNGs (default:
            beside the JSON, of its name without ``.json``).
        instances_json: instance annotations; those of images that ``panoptic_json`` does not list
            are left out. None: instances are the thing segments of the panoptic maps.
        class_names: class-name file whose indices are the JSON's category ids, in the same order.
            None: the names are those in the JSON, where a comma separates synonyms.

    Raises:
        InputError: an unreadable or faulty file, or files that do not belong together.
    """
    panoptic_png = panoptic_png or panoptic_json.with_suffix("")
    data = read_lists(panoptic_json, ("images", "annotations", "categories"))
    categories = _categories(data["categories"], panoptic_json, class_names)
    numbers = number_images(data, panoptic_json)
    records = unique(data["images"], "id", panoptic_json, "images")
    unique(data["images"], "file_name", panoptic_json, "images")
    annotations = unique(data["annotations"], "image_id", panoptic_json, "annotations")
    _match(records, annotations, panoptic_json)
    photos, maps = Folder(images, what="photograph"), Folder(panoptic_png, what="PNG")
    listed, drawn = (
        [plain_name(entry, "file_name", panoptic_json) for entry in entries.values()]
        for entries in (records, annotations)
    )
    pictures = locate(listed, lambda name: find_photo(name, photos), images, panoptic_json, "image")
    pngs = locate(drawn, maps.file, panoptic_png, panoptic_json, "PNG")
    nested = len({picture.stem for picture in pictures.values()}) < len(pictures)
    sizes = {key: image_size(record, panoptic_json) for key, record in records.items()}
    instances, skipped = _instances(instances_json, sizes, categories, numbers)
    known = {category.upstream_id for category in categories}
    tasks = []
    for key, record in records.items():
        annotation = annotations[key]
        png, image = pngs[annotation["file_name"]], pictures[record["file_name"]]
        segments = get(annotation, "segments_info", panoptic_json, "annotations")
        segments = check_segments(segments, known, f"{panoptic_json}: image {key}")
        payload = {
            "width": sizes[key][1],
            "height": sizes[key][0],
            "segments": segments,
            "instances": instances.get(key, []) if instances is not None else None,
        }
        upstream_id = record.get("upstream_id", "")
        if not match_names(image, png, upstream_id):
            raise InputError(
                f"{panoptic_json}: annotations.file_name {png.name!r} of image "
                f"{upstream_id or key} should be '{image.stem}.png'; the JSON does not belong to "
                "these images"
            )
        below = image.relative_to(images)
        tasks.append(
            Task(
                id=key,
                image=image,
                sources=(png,),
                payload=payload,
                name="__".join(below.with_suffix("").parts) if nested else "",
                upstream_id=upstream_id,
                warts={} if below.as_posix() == record["file_name"] else {"renamed_photo": 1},
            )
        )
    origin = "panoptic segments" if instances_json is None else UPSTREAM_INSTANCES
    if skipped:
        origin += f" ({skipped} of other images left out)"
    return Source(
        tasks=tasks,
        converter=partial(_convert, categories=categories, json_name=panoptic_json),
        categories=categories,
        image_root=images,
        instances=origin,
        stray=stray_files(photos, maps),
    )


def _categories(entries: Sequence[Any], path: Path, class_names: Path | None) -> list[Category]:
    upstream = unique(entries, "id", path, "categories")
    if class_names is None:
        return json_categories(upstream, path)
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
        check_fields(entry, CATEGORY, f"{path}: category {key}")
        is_thing = bool(entry["isthing"])
        categories.append(
            Category(
                index=position,
                names=names[key],
                is_thing=is_thing,
                upstream_id=key,
                upstream_name=str(entry.get("name", "")).strip(),
            )
        )
    check_numbering(
        [one.names for one in categories], [one.upstream_name for one in categories],
        class_names, path,
    )  # fmt: skip
    return categories


def _match(records: Mapping[int, Any], annotations: Mapping[int, Any], path: Path) -> None:
    """Check that every image has an annotation, and every annotation an image."""
    if missing := records.keys() - annotations.keys():
        raise InputError(
            f"{path}: image {min(missing)} has no annotation ({len(missing)} such images); add "
            "it, with an empty segments_info if nothing is in the image, or remove the image"
        )
    if strange := annotations.keys() - records.keys():
        raise InputError(
            f"{path}: annotations: image_id {min(strange)} is not in images ({len(strange)} such "
            "annotations); remove them, or add the images"
        )


def _instances(
    path: Path | None,
    sizes: Mapping[int, tuple[int, int]],
    categories: Sequence[Category],
    numbers: Mapping[str, int],
) -> tuple[dict[int, list[dict[str, Any]]] | None, int]:
    """Upstream instance annotations by image (None without a file), and how many were left out.

    ``numbers``: see :func:`possam.datasets.coco_files.number_images`.
    """
    if path is None:
        return None, 0
    data = read_lists(path, ("images", "annotations", "categories"))
    number_annotations(data["annotations"])
    _check_instance_names(data["categories"], categories, path)
    things = {c.upstream_id: c.index for c in categories if c.is_thing}
    grouped, skipped = defaultdict[int, list[dict[str, Any]]](list), 0
    for key, entry in unique(data["annotations"], "id", path, "annotations").items():
        if numbers:  # 0: no image
            text = entry.get("image_id")
            entry = {**entry, "image_id": numbers.get(text, 0) if isinstance(text, str) else 0}
        check_fields(entry, {"category_id": ID, "image_id": ID}, f"{path}: annotation {key}")
        category, image = entry["category_id"], entry["image_id"]
        if category not in things:
            raise InputError(
                f"{path}: annotation {key}: category_id {category} is no thing class of the "
                "panoptic annotations; the two files must be of one release"
            )
        if image not in sizes:
            skipped += 1
            continue
        fields = ("area", "bbox", "iscrowd", "segmentation")
        kept = {name: get(entry, name, path, "annotations") for name in fields}
        check_instance(kept, *sizes[image], f"{path}: annotation {key}")
        grouped[image].append({"id": key, "category_id": things[category], **kept})
    if skipped and not grouped:
        raise InputError(
            f"{path}: annotations: none of {skipped} is of an image of the panoptic annotations; "
            "the two files must be of one split"
        )
    return grouped, skipped


def _check_instance_names(
    entries: Sequence[Any], categories: Sequence[Category], path: Path
) -> None:
    """Check that a name has one id in the instance and the panoptic annotations."""
    known = {category.upstream_id: name_keys(category.upstream_name) for category in categories}
    for key, entry in unique(entries, "id", path, "categories").items():
        own = name_keys(str(entry.get("name", "")))
        there = [other for other, names in known.items() if names & own]
        if there and key not in there:
            raise InputError(
                f"{path}: categories: {entry['name']!r} has the id {key}, but {there[0]} in the "
                "panoptic annotations; both files must number the classes alike"
            )


def _convert(
    task: Task,
    *,
    categories: Sequence[Category],
    json_name: Path,
) -> Converted:
    from possam.datasets.images import check_photo, things_as_instances, turned
    from possam.datasets.pixels import class_map, decode_file, decode_ids

    payload, png = task.payload, task.sources[0]
    photo_size, image_sha256 = check_photo(task.image)
    pixels, _ = decode_file(png)
    size = (payload["height"], payload["width"])
    for path, shape in ((task.image, photo_size), (png, pixels.shape[:2])):
        if shape != size:
            raise InputError(
                f"{path}: {shape[1]}x{shape[0]} pixels, but {json_name} says {size[1]}x{size[0]} "
                f"for image {task.upstream_id or task.id}; all must be of one size"
                f"{turned(shape, size)}"
            )
    ids = decode_ids(pixels, png)
    index = {category.upstream_id: category.index for category in categories}
    segments = _segments(ids, payload["segments"], index, f"{json_name}: image {task.id}", png)
    semantic = class_map(ids, {segment.id: segment.category for segment in segments})
    if payload["instances"] is None:
        instances = things_as_instances(ids, segments, categories)
    else:
        instances = [_instance(entry, *size) for entry in payload["instances"]]
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
    """Segments in the JSON's order, with areas and boxes computed from the PNG; see
    :func:`possam.datasets.images.settle_crowds` for several crowd regions of one class.
    """
    from possam.datasets.images import settle_crowds
    from possam.datasets.label_runs import segment_table

    counted = {key: (area, box) for key, area, box in segment_table(ids)}
    segments: dict[int, Segment] = {}
    for entry in entries:
        key = entry["id"]
        if key not in counted:
            raise InputError(
                f"{where}: segment {key} has no pixel in {png}; JSON and PNGs must be of "
                "one release"
            )
        (area, box), crowd = counted[key], bool(entry.get("iscrowd", 0))
        segments[key] = Segment(
            id=key, category=index[entry["category_id"]], area=area, bbox=box, is_crowd=crowd
        )
    if strange := sorted(counted.keys() - segments.keys()):
        raise InputError(
            f"{png}: segment id {strange[0]} is not in segments_info of {where} ({len(strange)} "
            "such ids); JSON and PNGs must be of one release"
        )
    return settle_crowds(segments.values())


def _instance(entry: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """An upstream instance, which has been checked, with its polygons or RLE as compressed RLE."""
    from pycocotools import mask as run_length

    mask = entry["segmentation"]
    if isinstance(mask, list):
        mask = run_length.merge(run_length.frPyObjects(mask, height, width))
    elif isinstance(mask["counts"], list):
        mask = run_length.frPyObjects(mask, height, width)
    text = str(mask["counts"], "ascii") if isinstance(mask["counts"], bytes) else mask["counts"]
    kept = {key: entry[key] for key in ("category_id", "area", "bbox", "iscrowd")}
    return {**kept, "segmentation": {"size": [height, width], "counts": text}}
