"""COCO's formats: panoptic (a PNG of ids per picture), instances (run lengths, or polygons)."""

from pathlib import Path, PurePosixPath
from typing import Any

from possam.datasets.label_runs import encode_masks
from possam.datasets.pixels import encode_ids, write_png
from possam.pictures.exports.polygons import flat, join, outline, polygon_packages, rings
from possam.pictures.exports.writer import JsonLists, Result, Writer, shapes, with_ending


class _CocoWriter(Writer):
    """One JSON; images are numbered from 1, and a category's id is its place in the vocabulary."""

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        super().__init__(out, root=root)
        self._json = JsonLists(self.json, "images", "annotations")

    @property
    def json(self) -> Path:
        """The JSON file."""
        return self.out

    def add_image(self, result: Result, name: PurePosixPath) -> int:
        """List an image; returns its number."""
        number = self._json.counts["images"] + 1
        height, width = result.id_map.shape
        image = {"id": number, "file_name": str(name), "width": width, "height": height}
        self._json.add("images", image)
        return number

    def add_annotation(self, annotation: dict[str, Any]) -> None:
        """List an annotation."""
        self._json.add("annotations", annotation)

    def finish(self) -> None:
        self._json.write(
            {
                "categories": [
                    {
                        "id": index,
                        "name": each.name,
                        "names": list(each.names),
                        "isthing": int(each.is_thing),
                    }
                    for index, each in enumerate(self.classes or ())
                    if self.lists(each.is_thing)
                ]
            }
        )

    def lists(self, is_thing: bool) -> bool:
        """Whether classes of this kind are in the file."""
        return True

    def close(self) -> None:
        self._json.close()


class PanopticWriter(_CocoWriter):
    """A folder with ``panoptic.json`` and ``panoptic/*.png``, ids R + 256 G + 65536 B."""

    @property
    def json(self) -> Path:
        return self.out / "panoptic.json"

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        folder = self.json.with_suffix("")
        png = with_ending(folder, name, ".png")
        write_png(png, encode_ids(result.id_map))
        found = shapes(result)
        self.add_annotation(
            {
                "image_id": self.add_image(result, name),
                "file_name": png.relative_to(folder).as_posix(),
                "segments_info": [
                    {
                        "id": segment.id,
                        "category_id": segment.class_index,
                        "area": found[segment.id][0],
                        "bbox": list(found[segment.id][1]),
                        "iscrowd": 0,
                        "score": float(segment.score),
                    }
                    for segment in result.segments
                ],
            }
        )


class InstancesWriter(_CocoWriter):
    """A JSON with the masks of things as run lengths; stuff has no instances and is left out."""

    suffix = ".json"

    def lists(self, is_thing: bool) -> bool:
        return is_thing

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        number, found = self.add_image(result, name), shapes(result)
        masks = self.masks(result)
        for segment in result.segments:
            if segment.is_thing:
                area, box = found[segment.id]
                self.add_annotation(
                    {
                        "id": self._json.counts["annotations"] + 1,
                        "image_id": number,
                        "category_id": segment.class_index,
                        "segmentation": masks[segment.id],
                        "area": area,
                        "bbox": list(box),
                        "iscrowd": 0,
                        "score": float(segment.score),
                    }
                )

    def masks(self, result: Result) -> dict[int, Any]:
        """``segmentation`` of each thing by the segment's id."""
        return encode_masks(result.id_map, {each.id for each in result.segments if each.is_thing})


class PolygonsWriter(InstancesWriter):
    """The same with polygons, one per part, each with its holes joined to its outer ring.

    pycocotools draws them as the same masks.
    """

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        polygon_packages()
        super().__init__(out, root=root)

    def masks(self, result: Result) -> dict[int, Any]:
        found = outline(result.id_map)
        return {key: [flat(join(rings(one))) for one in parts] for key, parts in found.items()}
