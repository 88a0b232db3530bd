"""ADE20K and COCO prepared segment by segment, as Mask2Former's preparation scripts do it.

Every segment gets a boolean mask over the whole image, from which its area, box and run-length code
are computed; PNGs are written with Pillow's defaults. Photographs are not read, nothing is checked
or resumable, and areas are counted before instances cover stuff.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as run_length

Array = npt.NDArray[Any]


def prepare_ade20k(
    *, labels: Path, instances: Path, instance_classes: Mapping[int, int], out: Path
) -> None:
    """Semantic maps, instances and panoptic maps of a folder of ADE20K annotations.

    Three passes over the files, as three scripts are run one after the other.

    Args:
        labels: scene parsing maps, one channel, 0 void, 1..K.
        instances: instance maps (R: instance class, G: instance id, 0 none).
        instance_classes: class index 0..K-1 of each instance class.
        out: receives ``semantic/``, ``panoptic/``, ``instances.json`` and ``panoptic.json``.
    """
    files = sorted(labels.glob("*.png"))
    for folder in ("semantic", "panoptic"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    for path in files:
        shifted = _read(path) - np.uint8(1)  # void, 0, becomes 255
        Image.fromarray(shifted).save(out / "semantic" / path.name)

    masks: list[dict[str, Any]] = []
    for number, path in enumerate(files):
        for category, mask in _instances(_read(instances / path.name), instance_classes):
            code = run_length.encode(np.asfortranarray(mask, dtype=np.uint8))
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
            entry = {"id": len(masks) + 1, "image_id": number, "segmentation": segmentation}
            masks.append(entry | _extent(mask, category))
    (out / "instances.json").write_text(json.dumps({"annotations": masks}))

    things = set(instance_classes.values())
    annotations: list[dict[str, Any]] = []
    for number, path in enumerate(files):
        semantic = _read(path)
        colours = np.zeros((*semantic.shape, 3), np.uint8)
        segments: list[dict[str, Any]] = []
        for source in (
            _stuff(semantic, things),
            _instances(_read(instances / path.name), instance_classes),
        ):
            for category, mask in source:
                key = len(segments) + 1
                colours[mask] = (key % 256, key // 256 % 256, key // 65536)
                segments.append({"id": key} | _extent(mask, category))
        Image.fromarray(colours).save(out / "panoptic" / path.name)
        annotations.append({"image_id": number, "file_name": path.name, "segments_info": segments})
    (out / "panoptic.json").write_text(json.dumps({"annotations": annotations}))


def prepare_coco_semantic(
    *, panoptic_json: Path, panoptic_png: Path, classes: Mapping[int, int], out: Path
) -> None:
    """Semantic maps of COCO's panoptic annotations.

    Args:
        panoptic_json, panoptic_png: panoptic annotations, and the folder of their PNGs.
        classes: class index 0..K-1 of each category id.
        out: receives ``semantic/``, void 255.
    """
    (out / "semantic").mkdir(parents=True, exist_ok=True)
    for annotation in json.loads(panoptic_json.read_text())["annotations"]:
        pixels = _read(panoptic_png / annotation["file_name"]).astype(np.uint32)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        semantic = np.full(ids.shape, 255, np.uint8)
        for segment in annotation["segments_info"]:
            semantic[ids == segment["id"]] = classes[segment["category_id"]]
        Image.fromarray(semantic).save(out / "semantic" / annotation["file_name"])


def _read(path: Path) -> Array:
    with Image.open(path) as image:
        return np.asarray(image)


def _stuff(semantic: Array, things: set[int]) -> Iterator[tuple[int, Array]]:
    """Class index and mask of the stuff of a scene parsing map."""
    for label in np.unique(semantic).tolist():
        if label and label - 1 not in things:
            yield label - 1, semantic == label


def _instances(pixels: Array, classes: Mapping[int, int]) -> Iterator[tuple[int, Array]]:
    """Class index and mask of the instances of an instance map."""
    kinds, numbers = pixels[..., 0], pixels[..., 1]
    for kind in np.unique(kinds[numbers > 0]).tolist():
        of_kind = kinds == kind
        for number in np.unique(numbers[of_kind]).tolist():
            if number:
                yield classes[kind], of_kind & (numbers == number)


def _extent(mask: Array, category: int) -> dict[str, Any]:
    """The fields of COCO's annotations of a segment."""
    columns, rows = np.flatnonzero(mask.sum(0)).tolist(), np.flatnonzero(mask.sum(1)).tolist()
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    return {"category_id": category, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
