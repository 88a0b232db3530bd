"""Predictions of any system, read and checked: COCO's panoptic format, and label PNGs.

A panoptic prediction is one JSON and one PNG per image, with ids R + 256 G + 65536 B.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from possam.datasets.format import Category, ConvertedDataset, ImageRecord
from possam.datasets.json_fields import ID, LIST, TEXT
from possam.datasets.pixels import FORMATS, UNREADABLE, decode_ids, decode_map
from possam.evaluation.options import Numbering
from possam.evaluation.run_lengths import RunLengths, encode_array, encode_file
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.memory import no_collection

CATEGORY_IDS: tuple[str, ...] = get_args(Numbering)
VOID_LABELS = {8: 255, 16: 65535}
"""The value that means no class in label PNGs, by their bits per pixel."""


@dataclass(frozen=True, kw_only=True)
class PanopticFormat:
    """How to read an image's prediction, given its entry in the JSON; small and picklable.

    ``json``: for messages; ``classes``: valid ``category_id`` -> class index.
    """

    json: Path
    folder: Path
    classes: Mapping[int, int]

    def read(
        self, record: ImageRecord, annotation: Mapping[str, Any]
    ) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of ids, and id -> class index.

        ``annotation``: the image's entry in the JSON; the ``segments`` of ``record`` are not used.

        Raises:
            InputError: anything malformed or inconsistent, with file, field and remedy.
        """
        segments: dict[int, int] = {}
        where = f"{self.json}: image_id {record.id}: segments_info"
        for number, segment in enumerate(annotation["segments_info"]):
            _check_fields(segment, f"{where}[{number}]", id=int, category_id=int)
            key, category = segment["id"], segment["category_id"]
            if key in segments:
                raise InputError(f"{where}[{number}]: id: {key} occurs twice; ids must be unique")
            if category not in self.classes:
                raise InputError(
                    f"{where}[{number}]: category_id: {category} is unknown; "
                    f"add it to 'categories' or correct it"
                )
            segments[key] = self.classes[category]
        path = self.folder / annotation["file_name"]
        ids = encode_file(path, colour=True, size=(record.height, record.width))
        if ids is None:
            colours = read_png(path)
            if colours.ndim != 3 or colours.shape[2] < 3 or colours.dtype != np.uint8:
                raise InputError(f"{path}: an 8-bit RGB PNG is expected (id = R + 256 G + 65536 B)")
            check_size(path, colours, record)
            ids = encode_array(decode_ids(colours[..., :3], path))
        drawn = set(np.unique(ids.values).tolist()) - {0}
        if drawn != set(segments):
            raise InputError(
                f"{path}: ids in the PNG and in {self.json.name} differ: only in the PNG "
                f"{sorted(drawn - set(segments))[:5]}, only in segments_info "
                f"{sorted(set(segments) - drawn)[:5]}; list each drawn segment once, 0 is void"
            )
        return ids, segments


class PredictionReader:
    """Reads panoptic predictions of any system and checks them against a data set.

    Args:
        folder: that of the PNGs; default: beside ``json``, of the same name without ``.json``.
        category_ids: whether ``category_id`` is the data set's own index (``contiguous``) or the
            id of the data set's upstream release (``upstream``).

    Raises:
        InputError: anything missing, malformed or inconsistent, with file, field and remedy.
    """

    def __init__(
        self, json: Path, dataset: ConvertedDataset, *, folder: Path | None, category_ids: str
    ) -> None:
        self.json, self._dataset = json, dataset
        _check_category_ids(category_ids)
        with no_collection():
            content = read_json(json)
        self.folder = folder if folder is not None else json.with_suffix("")
        if not self.folder.is_dir():
            raise InputError(f"{self.folder}: no such folder; name the folder of predicted PNGs")
        _check_fields(content, str(json), annotations=list, categories=list)
        classes = self._category_map(content["categories"], category_ids)
        self.format = PanopticFormat(json=json, folder=self.folder, classes=classes)
        self.annotations: dict[int, dict[str, Any]] = {}
        """Entries of the JSON by image id; their segments are not checked yet."""
        for number, annotation in enumerate(content["annotations"]):
            where = f"{json}: annotations[{number}]"
            _check_fields(annotation, where, image_id=int, file_name=str, segments_info=list)
            image_id = annotation["image_id"]
            if image_id in self.annotations:
                raise InputError(
                    f"{where}: image_id: {image_id} occurs twice; keep one prediction per image"
                )
            self.annotations[image_id] = annotation
        missing = [record.id for record in dataset.images if record.id not in self.annotations]
        if missing:
            raise InputError(
                f"{json}: annotations: {len(missing)} of {len(dataset)} images have no prediction "
                f"(image_id {missing[0]} is the first); predict all images of the data set"
            )
        extra = sorted(set(self.annotations) - {record.id for record in dataset.images})
        if extra:
            raise InputError(
                f"{json}: annotations: image_id {extra[0]} and {len(extra) - 1} others are not in "
                f"{dataset.name} {dataset.split}; choose predictions of this split"
            )

    def _category_map(self, categories: list[Any], category_ids: str) -> dict[int, int]:
        """Valid ``category_id`` -> class index."""
        known = _by_id(self._dataset, category_ids)
        other = "upstream" if category_ids == "contiguous" else "contiguous"
        remedy = f"if the ids are {other} ids, choose category_ids={other!r}"
        result = {}
        for number, category in enumerate(categories):
            where = f"{self.json}: categories[{number}]"
            _check_fields(category, where, id=int)
            if category["id"] not in known:
                raise InputError(
                    f"{where}: id: {category['id']!r} is no {category_ids} category id of "
                    f"{self._dataset.name}; {remedy}"
                )
            ours = known[category["id"]]
            _check_fields({"name": ours.names[0]} | category, where, name=str)
            name = category.get("name", ours.names[0]).strip().lower()
            names = [synonym.strip().lower() for synonym in ours.names]
            if category_ids == "contiguous" and name not in names:
                raise InputError(
                    f"{where}: name: {name!r}, but class {ours.index} of {self._dataset.name} is "
                    f"{ours.names[0]!r}; {remedy}"
                )
            result[category["id"]] = ours.index
        return result

    def read(self, record: ImageRecord) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of ids, and id -> class index."""
        return self.format.read(record, self.annotations[record.id])


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """How to read label PNGs ``<image name>.png``; small and picklable.

    Attributes:
        dataset: the data set's name, for messages.
        classes: valid label -> class index.
        category_ids: one of ``CATEGORY_IDS``, the numbering of the labels.
    """

    folder: Path
    dataset: str
    classes: Mapping[int, int]
    category_ids: str

    @classmethod
    def of(cls, folder: Path, dataset: ConvertedDataset, *, category_ids: str) -> "LabelFormat":
        """The format of ``folder``; errors as of :class:`PredictionReader`."""
        _check_category_ids(category_ids)
        if not any(folder.glob("*.png")):
            raise InputError(
                f"{folder}: no PNG in this folder; for panoptic predictions name the JSON file"
            )
        classes = {key: c.index for key, c in _by_id(dataset, category_ids).items()}
        return cls(folder=folder, dataset=dataset.name, classes=classes, category_ids=category_ids)

    def read(self, record: ImageRecord) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of labels, and label -> class index, -1 for none.

        Raises:
            InputError: anything missing or malformed, with file and remedy.
        """
        path = self.folder / f"{Path(record.file).stem}.png"
        found = encode_file(path, colour=False, size=(record.height, record.width))
        if found is None:
            stored = read_png(path)
            if stored.ndim != 2 or stored.dtype not in (np.uint8, np.uint16):
                raise InputError(
                    f"{path}: a single-channel PNG of 8 or 16 bits with class indices is expected, "
                    f"not {stored.dtype} with {stored.ndim} dimensions"
                )
            check_size(path, stored, record)
            found = encode_array(stored)
        void = VOID_LABELS[found.bits]
        none = {void, 0} if self.category_ids == "upstream" else {void}
        if found.bits == 8 and max(self.classes) >= void:
            raise InputError(
                f"{path}: 8 bits per pixel, but {self.category_ids} ids of {self.dataset} go up to "
                f"{max(self.classes)}; write label PNGs of 16 bits (65535 = none)"
            )
        values = np.unique(found.values).tolist()
        unknown = [v for v in values if v not in self.classes and v not in none]
        if unknown:
            raise InputError(
                f"{path}: labels {unknown[:5]}: valid are the {self.category_ids} ids "
                f"{min(self.classes)}..{max(self.classes)} of the data set's {len(self.classes)} "
                f"classes, and {' or '.join(map(str, sorted(none)))} for none"
            )
        return found, {value: self.classes.get(value, -1) for value in values}


_KINDS = {int: ID._replace(text="a whole number"), str: TEXT._replace(text="a text"), list: LIST}


def _check_fields(entry: Any, where: str, **fields: type) -> None:
    """Raise an InputError unless ``entry`` is a JSON object with ``fields`` of these types."""
    if type(entry) is not dict:
        raise InputError(f"{where}: an object is expected; see COCO's panoptic format")
    for key, kind in fields.items():
        if not _KINDS[kind].holds(entry.get(key)):
            raise InputError(
                f"{where}: {key}: missing or not {_KINDS[kind].text}; see COCO's panoptic format"
            )


def _check_category_ids(category_ids: str) -> None:
    if category_ids not in CATEGORY_IDS:
        raise InputError(
            f"category_ids: unknown {category_ids!r}; valid choices: {', '.join(CATEGORY_IDS)}"
        )


def _by_id(dataset: ConvertedDataset, category_ids: str) -> dict[int, Category]:
    upstream = category_ids == "upstream"
    return {c.upstream_id if upstream else c.index: c for c in dataset.categories}


def read_png(path: Path) -> NDArray[Any]:
    """Pixels of an image file, as stored.

    Raises:
        InputError: no such file, or not an image.
    """
    try:
        if (quick := decode_map(path.read_bytes())) is not None:
            return quick
        with Image.open(path, formats=FORMATS) as image:
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; predict every image of the data set") from error
    except UNREADABLE as error:
        raise InputError(f"{path}: not a readable image ({error}); write it again") from error


def check_size(path: Path, pixels: NDArray[Any], record: ImageRecord) -> None:
    """Raise an InputError if pixels (H,W,...) differ in size from the image."""
    if pixels.shape[:2] != (record.height, record.width):
        raise InputError(
            f"{path}: size: {pixels.shape[1]} x {pixels.shape[0]}, but image {record.id} is "
            f"{record.width} x {record.height} (width x height); resize it (nearest)"
        )
