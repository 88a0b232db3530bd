"""COCO's instance results of any system, read and checked, for mask AP."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as rle

from possam.datasets.format import ConvertedDataset, ImageRecord
from possam.datasets.json_fields import (
    ID,
    LIST,
    TEXT,
    Field,
    check_fields,
    number,
    optional,
    shown,
)
from possam.datasets.masks import mask_fault
from possam.evaluation.instance import InstanceEvaluator
from possam.evaluation.numbering import NumberingError, check_listed
from possam.runtime.errors import InputError

REMEDY = "see COCO's format of results"
_ANY_ID = Field(lambda v: ID.holds(v) or TEXT.holds(v), "a whole number, or text")
_RESULT = {"image_id": _ANY_ID, "category_id": ID, "score": number(-1e12, 1e12)}
_CATEGORY = {"id": ID, "name": optional(TEXT)}


def is_instance_results(content: Any) -> bool:
    """Whether a JSON holds instances: a list of results, or annotations with masks of their own."""
    if type(content) is list:
        return bool(content) and type(content[0]) is dict
    entries = content.get("annotations") if type(content) is dict else None
    first = entries[0] if type(entries) is list and entries else None
    return type(first) is dict and "segmentation" in first


class ImageNames:
    """Which image of a data set a JSON means: that of the file name in its ``images``, or the id.

    A file name is a path below the data set's folder of images, or a name that only one image has.

    Attributes:
        ids: the ids in the JSON's ``images``, as the data set's.
        renamed: whether the file names say other ids than the JSON's own.
    """

    def __init__(self, images: Any, dataset: ConvertedDataset, where: str) -> None:
        self._texts = {one.upstream_id: one.id for one in dataset.images if one.upstream_id}
        names: dict[str, int] = {}
        for record in dataset.images:
            names[record.file.name] = -1 if record.file.name in names else record.id
        for record in dataset.images:
            if record.file.is_relative_to(dataset.image_root):
                names[record.file.relative_to(dataset.image_root).as_posix()] = record.id
        self._own: dict[Any, int] = {}
        self.renamed = False
        for place, entry in enumerate(images if type(images) is list else ()):
            fields = {"id": _ANY_ID, "file_name": optional(TEXT)}
            check_fields(entry, fields, f"{where}: images[{place}]", remedy=REMEDY)
            key, found = entry["id"], names.get(entry.get("file_name", ""), -1)
            by_id = self._texts.get(key, key)
            self._own[key] = by_id if found < 0 else found
            self.renamed |= self._own[key] != by_id
        self.ids = [*self._own.values()]

    def find(self, key: Any) -> Any:
        """The data set's id of the image that the JSON calls ``key``, if it has one."""
        return self._own.get(key, self._texts.get(key, key))


class InstanceResults:
    """Detections, each with a class, a score and a mask: COCO's list of results.

    Or an object with ``images``, ``categories`` and ``annotations`` that have scores, as
    ``possam predict --export coco-instances`` writes it.

    Args:
        numbers: valid ``category_id`` -> class index; kind: what this numbering is called.
        subset: whether images may be missing from ``images``.

    Attributes:
        images: the images to score.
        note: on names that are none of the data set's, or None.

    Raises:
        InputError: anything malformed, with file, field and remedy.
    """

    def __init__(
        self, json: Path, content: Any, dataset: ConvertedDataset, *, numbers: Mapping[int, int],
        kind: str, subset: bool,
    ) -> None:  # fmt: skip
        self._json, self._numbers = json, numbers
        self.note: str | None = None
        whole = type(content) is dict
        if whole:
            check_fields(content, {"annotations": LIST}, str(json), remedy=REMEDY)
        names = ImageNames(content.get("images") if whole else None, dataset, str(json))
        if whole and "categories" in content:
            check_fields(content, {"categories": LIST}, str(json), remedy=REMEDY)
            where = f"{json}: categories"
            for place, entry in enumerate(content["categories"]):
                check_fields(entry, _CATEGORY, f"{where}[{place}]", remedy=REMEDY)
            listed = [(e["id"], e.get("name", "").strip()) for e in content["categories"]]
            self.note = check_listed(listed, numbers, dataset, kind=kind, where=where)
        self.images: tuple[ImageRecord, ...] = tuple(dataset.images)
        if subset:
            if not names.ids:
                raise InputError(
                    f"{json}: --subset: a list of results does not say which images were looked "
                    "at in vain; write an object with 'images' and 'annotations'"
                )
            self.images = tuple(one for one in dataset.images if one.id in set(names.ids))
        records = {record.id: record for record in self.images}
        self._found: dict[int, list[dict[str, Any]]] = {}
        for place, entry in enumerate(content["annotations"] if whole else content):
            where = f"{json}: {'annotations' if whole else 'result'}[{place}]"
            check_fields(entry, _RESULT, where, remedy=REMEDY)
            record = records.get(names.find(entry["image_id"]))
            if record is None:
                raise InputError(
                    f"{where}: image_id {shown(entry['image_id'])} is not in {dataset.name} "
                    f"{dataset.split}; choose predictions of this split"
                )
            if entry["category_id"] not in numbers:
                raise NumberingError(
                    f"{where}: category_id {entry['category_id']} is no {kind} category id of "
                    f"{dataset.name}; choose the other --category-ids, or correct it"
                )
            if fault := mask_fault(entry.get("segmentation"), record.height, record.width):
                raise InputError(f"{where}: segmentation: {fault}; {REMEDY}")
            self._found.setdefault(record.id, []).append(entry)

    def fill(self, evaluator: InstanceEvaluator) -> None:
        """Give all detections to ``evaluator``."""
        for record in self.images:
            found = self._found.get(record.id, [])
            evaluator.update_encoded(
                record.id,
                [_encoded(entry["segmentation"], record) for entry in found],
                [self._numbers[entry["category_id"]] for entry in found],
                [float(entry["score"]) for entry in found],
            )


def _encoded(mask: Any, record: ImageRecord) -> Any:
    """A checked mask as compressed run lengths."""
    size = record.height, record.width
    if type(mask) is list:
        return rle.merge(rle.frPyObjects(mask, *size))
    return rle.frPyObjects(mask, *size) if type(mask["counts"]) is list else mask
