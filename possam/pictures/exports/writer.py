"""What all writers share: the names of pictures, and JSON files with long lists."""

import json
import os
import shutil
import tempfile
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from possam.datasets.label_runs import segment_table
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_path, atomic_write

_COPIED = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
"""Pictures that every tool reads as they are; others are written as PNG."""
_ORIENTATION = 0x0112


class PictureClass(Protocol):
    """What a writer needs of ``possam.pictures.result.PictureClass``."""

    @property
    def name(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def is_thing(self) -> bool: ...


class Segment(Protocol):
    """What a writer needs of ``possam.pictures.result.Segment``."""

    @property
    def id(self) -> int: ...
    @property
    def class_index(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def seen(self) -> bool | None: ...
    @property
    def is_thing(self) -> bool: ...
    @property
    def embedding(self) -> NDArray[np.float32] | None: ...
    @property
    def clip_embedding(self) -> NDArray[np.float32]: ...


class Result(Protocol):
    """What a writer needs of ``possam.pictures.result.Result``."""

    @property
    def image(self) -> NDArray[np.uint8]: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def id_map(self) -> NDArray[np.int32]: ...
    @property
    def classes(self) -> Sequence[PictureClass]: ...
    @property
    def segments(self) -> Sequence[Segment]: ...


class Writer(ABC):
    """Writes results of one vocabulary to ``out``; a context manager.

    Args:
        root: see :func:`possam.pictures.exports.open_writer`.

    Raises:
        InputError: ``out`` is of the wrong kind, or a package is missing.
    """

    suffix: ClassVar[str] = ""
    """Of the file ``out``; empty: ``out`` is a folder."""

    def __init__(self, out: Path | str, *, root: Path | str | None = None) -> None:
        self.out = Path(out)
        if self.suffix and self.out.is_dir():
            raise InputError(f"{self.out}: is a folder; name a file ({self.suffix})")
        if not self.suffix and self.out.exists() and not self.out.is_dir():
            raise InputError(f"{self.out}: is a file; name a folder")
        self.classes: Sequence[PictureClass] | None = None
        self._names = PictureNames(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self.close()

    def add(self, result: Result) -> None:
        """Write what belongs to one picture.

        Raises:
            InputError: its vocabulary is not that of the results before.
        """
        if self.classes is None:
            self.classes = result.classes
            self.start()
        elif self.classes is not result.classes and self.classes != result.classes:
            raise InputError(
                f"{self.out}: {result.path or 'a picture'} has another vocabulary than the "
                "pictures before; write each vocabulary into a folder of its own"
            )
        self.add_picture(result, self._names.name(result.path))

    def start(self) -> None:  # noqa: B027
        """Check the vocabulary, ``classes``, before the first picture is written."""

    @abstractmethod
    def add_picture(self, result: Result, name: PurePosixPath) -> None:
        """Write one picture; ``name``: below the folder of pictures, unique without its suffix."""

    def finish(self) -> None:  # noqa: B027
        """Write what lists all pictures."""

    def close(self) -> None:  # noqa: B027
        """Give back what is open, after an error, too."""


class PictureNames:
    """A name for each picture, below ``root`` where that is given; no two are equal.

    Two names that differ in their suffixes, or in upper and lower case, count as equal.
    """

    def __init__(self, root: Path | str | None) -> None:
        self._root = None if root is None else Path(os.path.abspath(root))
        self._taken: set[str] = set()
        self._count = 0

    def name(self, path: Path | None) -> PurePosixPath:
        """A path with ``/``; ``picture_000001.png`` for the first picture if it has no path."""
        self._count += 1
        for name in self._candidates(path):
            key = unicodedata.normalize("NFC", str(name.with_suffix(""))).casefold()
            if key not in self._taken:
                self._taken.add(key)
                return name
        raise AssertionError("candidates do not end")

    def _candidates(self, path: Path | None) -> Iterator[PurePosixPath]:
        names = [PurePosixPath(f"picture_{self._count:06d}.png")]
        if path is not None:
            own = Path(os.path.abspath(path))
            if self._root is not None and own.is_relative_to(self._root):
                names = [PurePosixPath(own.relative_to(self._root).as_posix())]
            else:
                parts = own.relative_to(own.anchor).parts
                names = [PurePosixPath(*parts[-depth:]) for depth in range(1, len(parts) + 1)]
        yield from names
        number = 2
        while True:
            yield names[0].with_name(f"{names[0].stem}_{number}{names[0].suffix}")
            number += 1


def with_ending(folder: Path, name: PurePosixPath, suffix: str) -> Path:
    """The file in ``folder`` for a picture, with another suffix."""
    return folder / name.with_name(f"{name.stem}{suffix}")


def copy_picture(result: Result, target: Path) -> Path:
    """Put the picture at ``target``, whose suffix may change; returns the file.

    A JPEG or PNG is copied as it is, if it is not turned by its EXIF data and has the size of the
    masks. Otherwise the pixels are written as PNG, so that the masks lie on them.
    """
    if result.path is not None:
        with Image.open(result.path) as image:
            same = image.size == result.id_map.shape[::-1]
            same &= image.getexif().get(_ORIENTATION, 1) == 1
            if same and target.suffix.lower() in _COPIED.get(image.format or "", ()):
                with atomic_path(target) as temporary:
                    shutil.copyfile(result.path, temporary)
                return target
    target = target.with_name(f"{target.stem}.png")
    with atomic_path(target) as temporary:
        Image.fromarray(result.image).save(temporary, format="PNG")
    return target


Shape = tuple[int, tuple[int, int, int, int]]


def shapes(result: Result) -> dict[int, Shape]:
    """Area and box (x, y, width, height) of each segment in the map, in pixels."""
    return {key: (area, box) for key, area, box in segment_table(result.id_map)}


class JsonLists:
    """A JSON file: an object with long lists, which are kept on disk until it is written."""

    def __init__(self, path: Path, *names: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lists: dict[str, IO[str]] = {
            name: tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8")  # noqa: SIM115
            for name in names
        }
        self.counts = dict.fromkeys(names, 0)

    def add(self, name: str, item: Any) -> None:
        """Append to the list ``name``."""
        text = json.dumps(item, allow_nan=False)
        self._lists[name].write(f",\n{text}" if self.counts[name] else text)
        self.counts[name] += 1

    def write(self, head: Mapping[str, Any]) -> None:
        """Write the file: the entries of ``head``, then the lists."""
        with atomic_write(self._path) as stream:
            stream.write("{")
            for name, value in head.items():
                stream.write(f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)},\n")
            for number, (name, items) in enumerate(self._lists.items()):
                stream.write(f"{',' if number else ''}\n{json.dumps(name)}: [\n")
                items.seek(0)
                shutil.copyfileobj(items, stream)
                stream.write("\n]")
            stream.write("\n}\n")

    def close(self) -> None:
        """Remove the lists from the disk."""
        for items in self._lists.values():
            items.close()
