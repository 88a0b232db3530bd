"""The pictures that a command line names: files, folders, and patterns such as ``"trip/*.jpg"``."""

import glob
from collections.abc import Sequence
from pathlib import Path

from possam.datasets.files import PICTURES, is_picture, is_stray
from possam.runtime.errors import InputError
from possam.runtime.reading import reading


def gather(arguments: Sequence[str], *, out: Path) -> dict[Path, Path]:
    """Files by their names below the folder of results, in order.

    One file that is named has the name ``.``; a folder's files (its subfolders' too) keep their
    path in it, other files only their own name. What lies below ``out`` is no picture of theirs.

    Raises:
        InputError: nothing of such a name, a folder or pattern without a picture, or two files of
            one name.
    """
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    for argument in arguments:
        for name, path in _files(argument, out.resolve()):
            if path.absolute() in seen:
                continue
            seen.add(path.absolute())
            if found.setdefault(name, path) is not path:
                raise InputError(
                    f"{path}: {found[name]} has the same name, and their results would be in one "
                    "folder; rename one, or name the folder that has both"
                )
    if len(found) == 1 and len(arguments) == 1 and Path(arguments[0]).is_file():
        return {Path("."): path for path in found.values()}
    return found


def _files(argument: str, out: Path) -> list[tuple[Path, Path]]:
    path = Path(argument)
    if path.is_dir():
        with reading(path):
            files = sorted(each for each in path.rglob("*") if _is_picture(each, path, out))
        if not files:
            raise InputError(
                f"{path}: no picture in this folder or below it; files with these suffixes are "
                f"taken: {', '.join(sorted(PICTURES))}"
            )
        return [(each.relative_to(path), each) for each in files]
    if path.exists() or not glob.has_magic(argument):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; correct the name")
        return [(Path(path.name), path)]
    files = sorted(map(Path, glob.glob(argument, recursive=True)))
    if not (files := [each for each in files if each.is_file()]):
        raise InputError(f"{argument}: no file fits this pattern; correct it")
    return [(Path(each.name), each) for each in files]


def _is_picture(path: Path, root: Path, out: Path) -> bool:
    below = path.relative_to(root)
    mine = path.resolve().is_relative_to(out)
    return is_picture(below) and path.is_file() and not is_stray(below) and not mine
