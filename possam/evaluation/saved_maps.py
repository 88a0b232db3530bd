"""Panoptic outputs of detectron2 and transformers that were saved with ``torch.save``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from possam.datasets.format import ConvertedDataset, ImageRecord
from possam.datasets.json_fields import check_fields, whole
from possam.evaluation.numbering import Mapped, NumberingError
from possam.evaluation.run_lengths import RunLengths, encode_array
from possam.runtime.errors import InputError
from possam.runtime.reading import check_readable

SUFFIXES = (".pt", ".pth")
_LARGEST = (1 << 31) - 1
_NUMBER = whole(-1, _LARGEST)
_FORMS = (
    "one image's output is expected: transformers' 'segmentation' and 'segments_info' (as "
    "post_process_panoptic_segmentation returns them), or detectron2's 'panoptic_seg'"
)


@dataclass(frozen=True, kw_only=True)
class SavedMaps:
    """How to read a folder with one file per image, ``<image name>.pt``; small and picklable.

    A file holds a map (H, W) of segment ids and a list of segments with their ``id`` and their
    class, ``label_id`` or ``category_id``; ids that the list does not have, 0 and -1, are void.

    Attributes:
        dataset: the data set's name, for messages.
        classes: valid class number -> class index.
        category_ids: the name of this numbering.
        listed, note: as of :class:`possam.evaluation.reader.PredictionReader`; there are no names.
    """

    listed = ()
    note = None
    folder: Path
    dataset: str
    classes: Mapping[int, int]
    category_ids: str

    @property
    def stated(self) -> Mapping[int, int]:
        """The numbering that was named."""
        return self.classes

    def path(self, record: ImageRecord) -> Path:
        """The file of one image, named like the PNGs of the data set."""
        places = [self.folder / f"{record.panoptic.stem}{suffix}" for suffix in SUFFIXES]
        return next((place for place in places if place.exists()), places[0])

    def images(self, dataset: ConvertedDataset) -> tuple[ImageRecord, ...]:
        """The images that have a file."""
        return tuple(record for record in dataset.images if self.path(record).exists())

    def numbers(self, record: ImageRecord) -> Mapped:
        """The map of one image, and each segment's class number as it is in the file."""
        return Mapped(*replace(self, classes=_Same()).read(record))

    def read(self, record: ImageRecord) -> tuple[RunLengths, dict[int, int]]:
        """The map of one image, as runs of new ids, and id -> class index.

        Raises:
            NumberingError: a number that is no class.
            InputError: anything missing or malformed, with file and remedy.
        """
        path = self.path(record)
        pixels, infos = _load(path)
        size = (record.height, record.width)
        if pixels.shape != size:
            raise InputError(
                f"{path}: size: {pixels.shape[1]} x {pixels.shape[0]}, but image {record.id} is "
                f"{record.width} x {record.height} (width x height); give the post-processing the "
                "image's size (target_sizes)"
            )
        segments: dict[int, int] = {}
        for place, info in enumerate(infos):
            where = f"{path}: segments_info[{place}]"
            key = "label_id" if type(info) is dict and "label_id" in info else "category_id"
            check_fields(info, {"id": _NUMBER, key: whole(0, _LARGEST)}, where, remedy=_FORMS)
            if info["id"] in segments:
                raise InputError(f"{where}: id {info['id']} comes twice; ids must be unique")
            if info[key] not in self.classes:
                raise NumberingError(
                    f"{where}: {key} {info[key]} is no {self.category_ids} category id of "
                    f"{self.dataset}; choose the other --category-ids, or correct it"
                )
            segments[info["id"]] = self.classes[info[key]]
        values, inverse = np.unique(pixels, return_inverse=True)
        table, classes = np.zeros(len(values), np.int64), {}
        for place, value in enumerate(values.tolist()):
            if value in segments:
                table[place] = place + 1
                classes[place + 1] = segments[value]
            elif value not in (0, -1):
                raise InputError(
                    f"{path}: id {value} is in the map, but not in segments_info; list each "
                    "segment (0 and -1 may be void)"
                )
        return encode_array(table[inverse.reshape(size)].astype(np.uint32)), classes


class _Same(dict[int, int]):
    """Every number is itself."""

    def __contains__(self, key: object) -> bool:
        return True

    def __missing__(self, key: int) -> int:
        return key


def is_saved_map(path: Path) -> bool:
    """Whether a file is one of these, by its name."""
    return path.suffix in SUFFIXES and not path.name.startswith(".")


def _load(path: Path) -> tuple[NDArray[np.int64], list[Any]]:
    """The map and the list of segments; only tensors and plain values are read, no objects."""
    import torch

    from possam.model.encoders.state_dicts import READ_ERRORS

    check_readable(path, missing="predict every image of the data set, or choose --subset")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: not a readable file of torch.save ({type(error).__name__}), or it holds "
            "more than tensors, lists and numbers; save the map and the list of segments only"
        ) from error
    if type(content) is dict:
        content = content.get(
            "panoptic_seg", (content.get("segmentation"), content.get("segments_info"))
        )
    if type(content) not in (tuple, list) or len(content) != 2:
        raise InputError(f"{path}: {_FORMS}")
    pixels, infos = content
    plain = (
        isinstance(pixels, torch.Tensor)
        and pixels.layout == torch.strided
        and pixels.device.type == "cpu"
        and pixels.dim() == 2
        and pixels.numel() > 0
        and not (pixels.dtype.is_floating_point or pixels.is_complex() or pixels.is_quantized)
    )
    if not plain or type(infos) is not list:
        raise InputError(f"{path}: {_FORMS}; the map has whole numbers (height, width)")
    return pixels.to(torch.int64).numpy(), infos
