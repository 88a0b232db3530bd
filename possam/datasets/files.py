"""Files in folders that people made: stray files, suffixes and subfolders.

Nothing here imports numpy, so that listing the data sets is fast.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

from possam.runtime.errors import InputError
from possam.runtime.reading import explain

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
"""Suffixes of photographs, in lower case; files may have them in any case."""
_STRAY = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx", "@eadir", "lost+found"}


def is_stray(path: PurePath) -> bool:
    """Whether an operating system or a program left this file: hidden ones (``._a.jpg``,
    ``.DS_Store``, ``.ipynb_checkpoints/``), ``Thumbs.db``, ``desktop.ini``, ``__MACOSX/``, ...

    ``path`` is below the folder that was asked for; all of its parts count.
    """
    return any(part.startswith(".") or part.casefold() in _STRAY for part in path.parts)


def is_picture(path: PurePath) -> bool:
    """Whether a file has the suffix of a photograph."""
    return path.suffix.lower() in PICTURES


def _key(path: str) -> str:
    """``path`` with composed characters: macOS takes names apart (e and an accent)."""
    return unicodedata.normalize("NFC", path)


class Folder:
    """The files in ``path`` and below it, from one listing.

    Attributes:
        files: paths below the folder, without stray ones, sorted.
        stray: likewise the stray ones.

    Raises:
        InputError: no such folder, or it cannot be read.
    """

    def __init__(self, path: Path, *, what: str) -> None:
        self.path = path
        try:
            found = sorted(self._walk())
        except OSError as error:
            place = error.filename or path
            raise InputError(
                explain(error, place)
                or f"{place}: no folder of {what}s ({error.strerror}); give the folder that holds "
                "them"
            ) from error
        self.files = [file for file in found if not is_stray(file)]
        self.stray = [file for file in found if is_stray(file)]
        self._exact = {_key(file.as_posix()): file for file in found}
        self._stems = defaultdict[str, list[Path]](list)
        for file in filter(is_picture, self.files):
            self._stems[_key(file.stem)].append(file)

    def _walk(self) -> Iterator[Path]:
        def fail(error: OSError) -> None:
            raise error

        seen = set[str]()
        for folder, folders, names in os.walk(self.path, onerror=fail, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder that is listed already
                folders.clear()
                continue
            seen.add(real)
            below = Path(folder).relative_to(self.path)
            yield from (below / name for name in names)

    def file(self, name: str) -> Path | None:
        """The file ``name`` (a path below the folder); None if there is none."""
        found = self._exact.get(_key(name))
        return None if found is None else self.path / found

    def picture(self, name: str) -> Path | None:
        """The photograph that a list calls ``name``; None if there is none.

        If there is no such file: the only one of this stem, with another suffix or in a subfolder.

        Raises:
            InputError: several could be meant.
        """
        if (exact := self.file(name)) is not None:
            return exact
        wanted = PurePath(name)
        near = self._stems.get(_key(wanted.stem), [])
        if len(wanted.parts) > 1:  # the folder is named: only the suffix may differ
            near = [file for file in near if _key(str(file.parent)) == _key(str(wanted.parent))]
        if len(near) > 1:
            raise InputError(
                f"{self.path / near[0]}: could be {name}, and {self.path / near[1]}, too; remove "
                "one of them, or name the file in the list as it is"
            )
        return self.path / near[0] if near else None

    def by_stem(self, *suffixes: str, ending: str = "") -> dict[str, Path]:
        """Files with one of the suffixes, in any case, by their stems without ``ending``, sorted.

        Raises:
            InputError: two files differ only in their suffixes or folders.
        """
        found: dict[str, Path] = {}
        for file in sorted(self.files, key=lambda file: file.name):
            if file.suffix.lower() in suffixes and file.stem.endswith(ending):
                path = self.path / file
                first = found.setdefault(file.stem.removesuffix(ending), path)
                if first != path:
                    raise InputError(f"{path}: {first} has the same name; remove one of them")
        return found


def locate(
    names: Iterable[str], find: Callable[[str], Path | None], folder: Path, path: Path, what: str
) -> dict[str, Path]:
    """The files that ``path`` lists, by their names there; InputError if one is missing."""
    places = {name: find(name) for name in names}
    if lost := sorted(name for name, place in places.items() if place is None):
        raise InputError(
            f"{folder / lost[0]}: listed in {path} but missing ({len(lost)} such {what}s of "
            f"{len(places)}); complete the folder, or the list. Some tools unpack too few: they "
            "believe a zip's count of entries, and where it has 16 bits, 65,536 files are lost"
        )
    return {name: place for name, place in places.items() if place is not None}


def stray_files(*folders: Folder) -> tuple[str, ...]:
    """The stray files of some folders, each below the name of its folder."""
    return tuple(f"{one.path.name}/{file.as_posix()}" for one in folders for file in one.stray)
