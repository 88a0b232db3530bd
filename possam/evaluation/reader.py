"""Predictions of any system, read and checked: COCO's panoptic format, and label PNGs.

A panoptic prediction is one JSON and one PNG per image, with ids R + 256 G + 65536 B.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from possam.datasets.files import is_stray
from possam.datasets.format import ConvertedDataset, ImageRecord
from possam.datasets.images import turned
from possam.datasets.json_fields import ID, LIST, TEXT
from possam.datasets.pixels import decode_ids, decode_map, open_image
from possam.evaluation.instance_results import ImageNames
from possam.evaluation.numbering import Mapped, NumberingError, check_listed
from possam.evaluation.options import Numbering
from possam.evaluation.run_lengths import RunLengths, encode_array, encode_file
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.memory import no_collection
from possam.runtime.reading import reading

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
        subset: whether images may be without a prediction.
        content: that of ``json``, if it is read already.

    Attributes:
        images: the images that have a prediction.
        renamed: whether images were found by file names that say other ids than ``image_id``.
        listed: id and name of each entry of the JSON's ``categories``.
        stated: the numbering that was named: ``category_id`` -> class index.
        note: on names that are none of the data set's, or None.

    Raises:
        InputError: anything missing, malformed or inconsistent, with file, field and remedy.
    """

    def __init__(
        self,
        json: Path,
        dataset: ConvertedDataset,
        *,
        folder: Path | None,
        category_ids: str,
        subset: bool = False,
        content: Any = None,
    ) -> None:
        self.json, self._dataset = json, dataset
        check_category_ids(category_ids)
        if content is None:
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
        names = ImageNames(content.get("images"), dataset, str(json))
        self.renamed = names.renamed
        for number, annotation in enumerate(content["annotations"]):
            where = f"{json}: annotations[{number}]"
            if isinstance(annotation, dict) and type(annotation.get("image_id")) in (int, str):
                annotation = {**annotation, "image_id": names.find(annotation["image_id"])}
            _check_fields(annotation, where, image_id=int, file_name=str, segments_info=list)
            image_id = annotation["image_id"]
            if image_id in self.annotations:
                raise InputError(
                    f"{where}: image_id: {image_id} occurs twice; keep one prediction per image"
                )
            self.annotations[image_id] = annotation
        missing = [record.id for record in dataset.images if record.id not in self.annotations]
        if missing and not subset:
            raise InputError(
                f"{json}: annotations: {len(missing)} of {len(dataset)} images have no prediction "
                f"(image_id {missing[0]} is the first); predict all images of the data set, or "
                "choose --subset"
            )
        self.images = tuple(one for one in dataset.images if one.id in self.annotations)
        extra = sorted(set(self.annotations) - {record.id for record in dataset.images})
        if extra:
            raise InputError(
                f"{json}: annotations: image_id {extra[0]} and {len(extra) - 1} others are not in "
                f"{dataset.name} {dataset.split}; choose predictions of this split"
            )

    def _category_map(self, categories: list[Any], category_ids: str) -> dict[int, int]:
        """Valid ``category_id`` -> class index; sets ``listed``, ``stated`` and ``note``."""
        where = f"{self.json}: categories"
        for number, category in enumerate(categories):
            _check_fields(category, f"{where}[{number}]", id=int)
            _check_fields({"name": ""} | category, f"{where}[{number}]", name=str)
        self.listed = [(entry["id"], entry.get("name", "").strip()) for entry in categories]
        self.stated = by_id(self._dataset, category_ids)
        self.note = check_listed(
            self.listed, self.stated, self._dataset, kind=category_ids, where=where
        )
        return {key: self.stated[key] for key, _ in self.listed}

    def read(self, record: ImageRecord) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of ids, and id -> class index."""
        return self.format.read(record, self.annotations[record.id])

    def numbers(self, record: ImageRecord) -> Mapped:
        """The map of one image with ``category_id`` as it is in the JSON."""
        known = {key: key for key, _ in self.listed}
        return Mapped(*replace(self.format, classes=known).read(
            record, self.annotations[record.id]
        ))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LabelFormat:
    """How to read label PNGs ``<image name>.png``; small and picklable.

    Attributes:
        dataset: the data set's name, for messages.
        classes: valid label -> class index.
        category_ids: one of ``CATEGORY_IDS``, the numbering of the labels.
        listed, note: as of :class:`PredictionReader`; labels have no names.
    """

    listed = ()
    note = None
    folder: Path
    dataset: str
    classes: Mapping[int, int]
    category_ids: str

    @classmethod
    def of(cls, folder: Path, dataset: ConvertedDataset, *, category_ids: str) -> "LabelFormat":
        """The format of ``folder``; errors as of :class:`PredictionReader`."""
        check_category_ids(category_ids)
        if not any(is_label_map(path) for path in folder.iterdir()):
            raise InputError(
                f"{folder}: no PNG in this folder; for panoptic predictions name the JSON file"
            )
        classes = by_id(dataset, category_ids)
        return cls(folder=folder, dataset=dataset.name, classes=classes, category_ids=category_ids)

    @property
    def stated(self) -> Mapping[int, int]:
        """The numbering that was named: label -> class index."""
        return self.classes

    def numbers(self, record: ImageRecord) -> Mapped:
        """The map of one image with labels as they are in the PNG."""
        found = self.read_labels(record)
        values = np.unique(found.values).tolist()
        return Mapped(found, dict(zip(values, values, strict=True)))

    def images(self, dataset: ConvertedDataset) -> tuple[ImageRecord, ...]:
        """The images that have a PNG."""
        return tuple(record for record in dataset.images if self.path(record).exists())

    def path(self, record: ImageRecord) -> Path:
        """The PNG of one image, named like those of the data set."""
        path = self.folder / f"{record.panoptic.stem}.png"
        upper = path.with_suffix(".PNG")
        return upper if upper.exists() and not path.exists() else path

    def read_labels(self, record: ImageRecord) -> RunLengths:
        """The map of one image, as runs of labels that are not checked yet.

        Raises:
            InputError: missing, no label map, or of another size.
        """
        path = self.path(record)
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
        return found

    def read(self, record: ImageRecord) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of labels, and label -> class index, -1 for none.

        Raises:
            NumberingError: a label that is no class.
            InputError: anything missing or malformed, with file and remedy.
        """
        path, found = self.path(record), self.read_labels(record)
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
            raise NumberingError(
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


def check_category_ids(category_ids: str) -> None:
    """InputError unless this is one of ``CATEGORY_IDS``."""
    if category_ids not in CATEGORY_IDS:
        raise InputError(
            f"category_ids: unknown {category_ids!r}; valid choices: {', '.join(CATEGORY_IDS)}"
        )


def is_label_map(path: Path) -> bool:
    """Whether a file in a folder of label PNGs is one, by its name."""
    return path.suffix.lower() == ".png" and not is_stray(Path(path.name))


def by_id(dataset: ConvertedDataset, category_ids: str) -> dict[int, int]:
    """The numbering of this name: category id -> class index."""
    upstream = category_ids == "upstream"
    return {c.upstream_id if upstream else c.index: c.index for c in dataset.categories}


def read_png(path: Path) -> NDArray[Any]:
    """Pixels of an image file, as stored.

    Raises:
        InputError: no such file, not an image, or one of too many pixels.
    """
    with reading(path, missing="predict every image of the data set, or choose --subset"):
        content = path.read_bytes()
    if (quick := decode_map(content)) is not None:
        return quick
    with open_image(content, path, remedy="write it again") as image:
        return np.asarray(image)


def check_size(path: Path, pixels: NDArray[Any], record: ImageRecord) -> None:
    """Raise an InputError if pixels (H,W,...) differ in size from the image."""
    size = (record.height, record.width)
    if pixels.shape[:2] != size:
        raise InputError(
            f"{path}: size: {pixels.shape[1]} x {pixels.shape[0]}, but image {record.id} is "
            f"{record.width} x {record.height} (width x height); resize it (nearest)"
            f"{turned(pixels.shape[:2], size)}"
        )
