"""What a data set's reader returns: classes, images to convert, converted images.

Nothing here imports numpy, so that listing the data sets is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from possam.datasets.pixels import Array

UPSTREAM_INSTANCES = "upstream annotations"
"""How ``Source.instances`` begins where the publisher annotated instances."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Category:
    """One class: ``index`` 0..K-1, ``names`` (the preferred one first) and the publisher's id.

    ``upstream_name``: what the publisher calls it; empty if only the class-name file names it.
    """

    index: int
    names: tuple[str, ...]
    is_thing: bool
    upstream_id: int
    upstream_name: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry in the JSON's ``categories``."""
        return {
            "id": self.index,
            "name": self.names[0],
            "names": list(self.names),
            "isthing": int(self.is_thing),
            "upstream_id": self.upstream_id,
            "upstream_name": self.upstream_name,
        }


def stuff_categories(
    names: Mapping[int, tuple[str, ...]],
    upstream_ids: Sequence[int],
    upstream_names: Sequence[str] = (),
) -> list[Category]:
    """Classes in the order of ``names`` (class-name file), all stuff."""
    return [
        Category(
            index=index,
            names=synonyms,
            is_thing=False,
            upstream_id=upstream,
            upstream_name=upstream_names[index] if upstream_names else "",
        )
        for index, (synonyms, upstream) in enumerate(zip(names.values(), upstream_ids, strict=True))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One segment: class index, ``area`` and ``bbox`` (x, y, width, height) in pixels."""

    id: int
    category: int
    area: int
    bbox: tuple[int, int, int, int]
    is_crowd: bool = False

    def to_json(self) -> dict[str, Any]:
        """The entry in the JSON's ``segments_info``."""
        return {
            "id": self.id,
            "category_id": self.category,
            "area": self.area,
            "bbox": list(self.bbox),
            "iscrowd": int(self.is_crowd),
        }


@dataclass(frozen=True, kw_only=True)
class Task:
    """One image to convert.

    Attributes:
        id, image: number and photograph; number and file name are unique in the data set.
        sources: the image's annotation files.
        payload: what the converter needs besides the files (JSON values).
        name: of its PNGs, without suffix, where the photograph's own is not unique.
        upstream_id: the publisher's id, where this is a text.
        warts: what is unusual about its files' names, by kind.
    """

    id: int
    image: Path
    sources: tuple[Path, ...]
    payload: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    upstream_id: str = ""
    warts: dict[str, int] = field(default_factory=dict)

    @property
    def png_name(self) -> str:
        """File name of this image's PNGs."""
        return f"{self.name or self.image.stem}.png"


@dataclass(frozen=True, kw_only=True)
class Converted:
    """One converted image.

    Attributes:
        image: SHA-256 (text) of a photograph that stays where it is; or the content (bytes) of the
            image file that the data set stores itself.
        ids: segment ids, integer (H, W), 0 is void.
        semantic: class indices, integer (H, W), -1 is void.
        segments: every segment of ``ids``.
        instances: COCO annotations without ``id`` and ``image_id``, masks as compressed RLE.
        panoptic_png: content of the upstream PNG, kept bit for bit; None: ``ids`` are encoded.
    """

    image: str | bytes
    ids: Array
    semantic: Array
    segments: tuple[Segment, ...]
    instances: list[dict[str, Any]]
    panoptic_png: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split of a data set, ready to be converted.

    Attributes:
        tasks: the images, in the order of the result.
        converter: converts one image; picklable; raises InputError on bad input.
        image_root: folder of the photographs; None: the data set stores what the converter returns.
        instances: where the instances come from, in words.
        stray: files in upstream's folders that belong to no data set and were left out.
    """

    tasks: Sequence[Task]
    converter: Callable[[Task], Converted]
    categories: Sequence[Category]
    image_root: Path | None
    instances: str = "none (semantic only: a class's pixels are one stuff segment)"
    stray: tuple[str, ...] = ()
