"""LabelMe's format: a JSON beside each picture, with polygons and masks that can be edited."""

import base64
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from possam.pictures.exports.polygons import inset, outline, polygon_packages, rings
from possam.pictures.exports.writer import Result, Writer, copy_picture, shapes, with_ending
from possam.runtime.files import write_json

_VERSION = "5.4.1"
"""Of LabelMe: the masks of shapes are as it has them since 5.3."""


class LabelMeWriter(Writer):
    """A folder with the pictures and a JSON of the same name for each, to be opened in LabelMe.

    A segment of one part without holes is a polygon, any other a mask, as LabelMe's polygons have
    neither; LabelMe draws both as the same pixels.
    """

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        polygon_packages()
        super().__init__(out, root=root)

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        picture = copy_picture(result, self.out / name)
        found, boxes = outline(result.id_map), shapes(result)
        entries = []
        for segment in result.segments:
            entry: dict[str, Any] = {
                "label": segment.name,
                "group_id": None,
                "description": f"score {segment.score:.3f}",
                "flags": {},
            }
            parts = found[segment.id]
            if len(parts) == 1 and not parts[0].interiors:
                points = rings(inset(parts)[0])[0]
                entry |= {"shape_type": "polygon", "points": points.tolist(), "mask": None}
            else:
                x, y, width, height = boxes[segment.id][1]
                mask = result.id_map[y : y + height, x : x + width] == segment.id
                corners = [[x, y], [x + width - 1, y + height - 1]]
                entry |= {"shape_type": "mask", "points": corners, "mask": _as_png(mask)}
            entries.append(entry)
        height, width = result.id_map.shape
        write_json(
            with_ending(self.out, name, ".json"),
            {
                "version": _VERSION,
                "flags": {},
                "shapes": entries,
                "imagePath": picture.name,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            },
        )


def _as_png(mask: Any) -> str:
    stream = BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()
