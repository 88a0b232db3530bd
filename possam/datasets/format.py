"""The on-disk format of converted data sets, and its reader.

A folder in COCO panoptic format, with semantic maps and instances::

    annotations.json  COCO panoptic JSON; category ids are contiguous, 0..K-1, in the order of the
                      class-name file; categories also have "names" (synonyms), "upstream_id" and
                      "upstream_name", images "upstream_id" where the publisher's id is a text
    panoptic/*.png    segment ids R + 256 G + 65536 B, 0 is void
    semantic/*.png    class index; void is 255, or 65535 from 255 classes on
    instances.json    COCO instances JSON of the things, masks as compressed RLE
    manifest.json     counts, label histogram, what is unusual (see warts), hashes; written last, so
                      a folder with it is complete

Images stay where they were unpacked; the manifest's ``image_root`` is the relative path from this
folder to theirs. If a protocol resizes images, all of them are stored here, in ``images/``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from possam.datasets.json_fields import LIST, OBJECT, TEXT, check_fields, one_of
from possam.datasets.pixels import decode_file, decode_semantic, read_ids, read_image
from possam.datasets.records import Category, Segment
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file
from possam.runtime.memory import no_collection
from possam.runtime.reading import reading

FORMAT = "possam-dataset-2"
ANNOTATIONS, INSTANCES, MANIFEST = "annotations.json", "instances.json", "manifest.json"
PANOPTIC, SEMANTIC, IMAGES = "panoptic", "semantic", "images"
T = TypeVar("T", bound=np.generic)
_MANIFEST = {
    **dict.fromkeys(("name", "split", "content"), TEXT),
    "image_root": one_of(str, text="a path"),
    "sha256": OBJECT,
    "vocabulary": LIST,
}
_SHA256 = dict.fromkeys(("annotations", "instances"), TEXT)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image: its files (full paths), size in pixels, and segments.

    ``upstream_id``: the publisher's id where it is a text, as in Cityscapes; else empty.
    """

    id: int
    file: Path
    width: int
    height: int
    panoptic: Path
    semantic: Path
    segments: tuple[Segment, ...]
    upstream_id: str = ""


@dataclass(frozen=True, kw_only=True)
class ConvertedDataset:
    """A converted data set, opened with :meth:`open`. Picklable; pixels are read on demand."""

    directory: Path
    image_root: Path
    manifest: Mapping[str, Any]
    categories: tuple[Category, ...]
    images: Sequence[ImageRecord] = field(repr=False)

    @classmethod
    @no_collection()
    def open(cls, directory: Path) -> "ConvertedDataset":
        """Read manifest and annotations of ``directory``.

        Raises:
            InputError: not a complete converted data set, or changed since it was converted.
        """
        directory = Path(directory)
        manifest = read_manifest(directory)
        path = directory / ANNOTATIONS
        data = _read_unchanged(path, manifest["sha256"]["annotations"])
        root = directory / manifest["image_root"]
        try:
            categories = tuple(
                Category(
                    index=int(entry["id"]),
                    names=tuple(entry["names"]),
                    is_thing=bool(entry["isthing"]),
                    upstream_id=int(entry["upstream_id"]),
                    upstream_name=str(entry.get("upstream_name", "")),
                )
                for entry in data["categories"]
            )
            segments = {entry["image_id"]: entry for entry in data["annotations"]}
            images = tuple(
                _image(entry, segments[entry["id"]], directory, root) for entry in data["images"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not in this project's format (at {error}); convert again"
            ) from error
        return cls(
            directory=directory, image_root=root, manifest=manifest, categories=categories,
            images=images,
        )  # fmt: skip

    @property
    def name(self) -> str:
        """Name of the data set (``coco``, ``ade20k``, ...)."""
        return str(self.manifest["name"])

    @property
    def split(self) -> str:
        """``train`` or ``val``; after ``possam convert-files`` it may be upstream's name."""
        return str(self.manifest["split"])

    @property
    def vocabulary(self) -> list[tuple[str, ...]]:
        """All names of each class, in the order of the class indices."""
        return [category.names for category in self.categories]

    def __len__(self) -> int:
        return len(self.images)

    def image(self, position: int) -> npt.NDArray[np.uint8]:
        """The photograph, uint8 RGB (H, W, 3); InputError if damaged or of another size."""
        record = self.images[position]
        return _of_size(read_image(record.file), record, record.file)

    def panoptic(self, position: int) -> npt.NDArray[np.int32]:
        """Segment ids, int32 (H, W), 0 is void; InputError if damaged or of another size."""
        record = self.images[position]
        return _of_size(read_ids(record.panoptic), record, record.panoptic)

    def semantic(self, position: int) -> npt.NDArray[np.int32]:
        """Class indices, int32 (H, W), -1 is void; InputError if damaged or of another size."""
        record = self.images[position]
        pixels, _ = decode_file(record.semantic)
        labels = decode_semantic(pixels, len(self.categories), record.semantic)
        return _of_size(labels, record, record.semantic)

    def instances(self) -> dict[str, Any]:
        """COCO's instances JSON (things, compressed RLE) for pycocotools; InputError if changed."""
        digest = self.manifest["sha256"]["instances"]
        return dict(_read_unchanged(self.directory / INSTANCES, digest))


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a converted data set; InputError if missing or of another format version."""
    path = Path(directory) / MANIFEST
    missing = f"{directory} is not a converted data set; convert it first"
    manifest: dict[str, Any] = read_json(path, missing=missing)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: format {FORMAT!r} is expected; convert the data set again")
    remedy = "convert the data set again"
    check_fields(manifest, _MANIFEST, str(path), remedy=remedy)
    check_fields(manifest["sha256"], _SHA256, f"{path}: sha256", remedy=remedy)
    return manifest


def _read_unchanged(path: Path, digest: str) -> Any:
    with reading(path, missing="convert the data set again"):
        unchanged = sha256_file(path) == digest
    if not unchanged:
        raise InputError(f"{path}: changed since the conversion; convert the data set again")
    return read_json(path)


def _of_size(pixels: npt.NDArray[T], record: ImageRecord, path: Path) -> npt.NDArray[T]:
    if pixels.shape[:2] != (record.height, record.width):
        raise InputError(
            f"{path}: {pixels.shape[1]}x{pixels.shape[0]} pixels, but the annotations say "
            f"{record.width}x{record.height}; restore the file, or convert the data set again"
        )
    return pixels


def _image(
    entry: Mapping[str, Any], annotation: Mapping[str, Any], directory: Path, root: Path
) -> ImageRecord:
    segments = tuple(
        Segment(
            id=int(segment["id"]),
            category=int(segment["category_id"]),
            area=int(segment["area"]),
            bbox=tuple(segment["bbox"]),
            is_crowd=bool(segment["iscrowd"]),
        )
        for segment in annotation["segments_info"]
    )
    return ImageRecord(
        id=int(entry["id"]),
        file=root / entry["file_name"],
        width=int(entry["width"]),
        height=int(entry["height"]),
        panoptic=directory / PANOPTIC / annotation["file_name"],
        semantic=directory / SEMANTIC / annotation["file_name"],
        segments=segments,
        upstream_id=str(entry.get("upstream_id", "")),
    )
