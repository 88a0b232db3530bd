"""PNGs of class numbers, and a class-name file: what semantic segmentation tools read."""

from pathlib import PurePosixPath

from possam.datasets.class_names import write_class_index
from possam.datasets.pixels import class_map, encode_semantic, write_png
from possam.pictures.exports.writer import Result, Writer, with_ending
from possam.runtime.errors import InputError

NAMES = "names.txt"
_MOST = 65_535


class LabelWriter(Writer):
    """A folder with one PNG per picture and ``names.txt`` (lines ``number:name,synonym``).

    A pixel holds the place of its class in the vocabulary, or 255 for none; from 255 classes on,
    16 bits and 65535. The folder can be scored, and ``names.txt`` is a class-name file.
    """

    def start(self) -> None:
        if len(self.classes or ()) > _MOST:
            raise InputError(
                f"{self.out}: label PNGs hold {_MOST:,} classes at most, not "
                f"{len(self.classes or ()):,}; choose coco-panoptic, or fewer classes"
            )

    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        labels = class_map(result.id_map, {each.id: each.class_index for each in result.segments})
        pixels = encode_semantic(labels, len(result.classes))
        write_png(with_ending(self.out, name, ".png"), pixels)

    def finish(self) -> None:
        names = {index: each.names for index, each in enumerate(self.classes or ())}
        write_class_index(self.out / NAMES, names)
