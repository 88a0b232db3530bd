"""YOLO's segmentation format: pictures, a text file of polygons for each, and ``data.yaml``."""

from pathlib import Path, PurePosixPath

import yaml

from possam.pictures.exports.polygons import inset, join, outline, polygon_packages, rings
from possam.pictures.exports.writer import Result, Writer, copy_picture, with_ending
from possam.runtime.files import atomic_write


class YoloWriter(Writer):
    """A folder with ``images/``, ``labels/`` and ``data.yaml``; the things, numbered from 0.

    A line holds one polygon, so the parts and holes of a mask are joined by lines. A mask of one
    part without holes is drawn by YOLO exactly at the picture's size; of others, only pixels within
    1.5 pixels of such a line can differ. Stuff has no instances and is left out.
    """

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        polygon_packages()
        super().__init__(out, root=root)
        self._numbers: dict[int, int] = {}

    def start(self) -> None:
        things = (index for index, each in enumerate(self.classes or ()) if each.is_thing)
        self._numbers = {index: number for number, index in enumerate(things)}

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        height, width = result.id_map.shape
        found, lines = outline(result.id_map), []
        for segment in result.segments:
            if segment.is_thing:
                parts = [ring for part in inset(found[segment.id]) for ring in rings(part)]
                points = join(sorted(parts, key=len, reverse=True)) / (width, height)
                text = " ".join(f"{value:.7g}" for value in points.ravel().tolist())
                lines.append(f"{self._numbers[segment.class_index]} {text}\n")
        with atomic_write(with_ending(self.out / "labels", name, ".txt")) as stream:
            stream.writelines(lines)
        copy_picture(result, self.out / "images" / name)

    def finish(self) -> None:
        # Without "path" the folders are looked for beside this file.
        names = {
            number: (self.classes or ())[index].name for index, number in self._numbers.items()
        }
        content = {"train": "images", "val": "images", "names": names}
        with atomic_write(self.out / "data.yaml") as stream:
            yaml.safe_dump(content, stream, allow_unicode=True, sort_keys=False)
