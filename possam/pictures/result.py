"""What comes out of a picture: its map, its segments, and what was not kept.

Shapes: H W of the picture, upright; E CLIP embedding.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL import Image
    from supervision import Detections


class PictureClass(NamedTuple):
    """A class of the vocabulary: its first name, its other names, and whether it is a thing."""

    name: str
    synonyms: tuple[str, ...]
    is_thing: bool

    @property
    def names(self) -> tuple[str, ...]:
        """The name and the synonyms."""
        return (self.name, *self.synonyms)


class Box(NamedTuple):
    """The smallest rectangle around a segment, in pixels from the upper left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a picture.

    Attributes:
        id: the segment's value in ``Result.id_map``, from 1.
        class_index: the place of its class in ``Result.classes``; name: that class's first name.
        score: 0..1.
        seen: whether the model was trained on the class; ``None`` if it was trained on none.
        is_thing: whether the class has countable objects, each a segment of its own.
        area: pixels.
        embedding: (E,) float32, unit norm, of local discriminative pooling; ``None`` without it.
        clip_embedding: (E,) float32, unit norm, of CLIP's features inside the mask.
        alternatives: the next best classes' names with their scores, best first.
    """

    id: int
    class_index: int
    name: str
    score: float
    seen: bool | None
    is_thing: bool
    box: Box
    area: int
    embedding: NDArray[np.float32] | None = field(repr=False)
    clip_embedding: NDArray[np.float32] = field(repr=False)
    alternatives: tuple[tuple[str, float], ...] = field(repr=False)
    id_map: NDArray[np.int32] = field(repr=False)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W) bool, made anew by every call."""
        return self.id_map == self.id


@dataclass(frozen=True, eq=False)
class Result:
    """The panoptic result of one picture.

    Attributes:
        image: (H, W, 3) uint8 RGB, upright.
        path: the picture's file; ``None`` for one given as an array.
        id_map: (H, W) int32, a segment's id at each of its pixels; 0: no segment (void).
        classes: the vocabulary.
        segments: best first.
        rejected: names of the classes without a segment that came nearest to one, with the best
            score of each, best first; at most five.
    """

    image: NDArray[np.uint8] = field(repr=False)
    path: Path | None
    id_map: NDArray[np.int32] = field(repr=False)
    classes: tuple[PictureClass, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    rejected: tuple[tuple[str, float], ...]

    def overlay(self) -> "Image.Image":
        """The segments over the picture, with a legend; see ``possam.pictures.overlay``."""
        from possam.pictures.overlay import draw_overlay

        return draw_overlay(
            self.image,
            self.id_map,
            {segment.id: segment.class_index for segment in self.segments},
            [each.name for each in self.classes],
        )

    def to_coco_panoptic(self, folder: Path | str) -> None:
        """Write COCO's panoptic format: ``panoptic.json`` and a PNG of ids in ``panoptic/``."""
        self._export("coco-panoptic", folder)

    def to_coco_instances(self, file: Path | str, *, polygons: bool = False) -> None:
        """Write the things as COCO's instances, one JSON, with run lengths or with polygons."""
        self._export("coco-polygons" if polygons else "coco-instances", file)

    def to_label_png(self, folder: Path | str) -> None:
        """Write a PNG of class numbers, and the classes' names in ``names.txt``."""
        self._export("label-png", folder)

    def to_yolo(self, folder: Path | str) -> None:
        """Write the things as a data set for YOLO's segmentation, with ``data.yaml``."""
        self._export("yolo", folder)

    def to_labelme(self, folder: Path | str) -> None:
        """Write the picture, and beside it a JSON for LabelMe."""
        self._export("labelme", folder)

    def to_geojson(self, file: Path | str) -> None:
        """Write polygons, in pixels or in a GeoTIFF's own georeference."""
        from possam.pictures.exports.geojson import save_geojson

        save_geojson(self, file)

    def to_npz(self, file: Path | str) -> None:
        """Write the segments' embeddings, names and boxes as NumPy arrays."""
        from possam.pictures.exports.npz import save_embeddings

        save_embeddings(self, file)

    def to_supervision(self) -> "Detections":
        """The segments as ``supervision.Detections``: see ``possam.pictures.connectors``."""
        from possam.pictures.connectors import to_detections

        return to_detections(self)

    def _export(self, name: str, out: Path | str) -> None:
        """Write this one picture; several: :func:`possam.pictures.exports.export`."""
        from possam.pictures.exports import export

        export(name, [self], out)
