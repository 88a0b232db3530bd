"""Find, check and link to upstream files on a user's disk. Nothing is written there."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.assets.archives import RECORD
from possam.datasets.files import is_stray
from possam.params.assets import AssetParams
from possam.params.data import DataParams, FilesParams, PartParams, image_count
from possam.runtime.errors import InputError
from possam.runtime.files import (
    atomic_directory,
    hash_json,
    link_to,
    read_json,
    sha256_file,
    write_json,
)
from possam.runtime.progress import track
from possam.runtime.reading import explain


@dataclass(frozen=True)
class LocalFile:
    """The asset's own file in a root."""

    path: Path


@dataclass(frozen=True)
class LocalParts:
    """The unpacked archive below a root: where each part is."""

    root: str
    parts: tuple[tuple[PartParams, Path], ...]


def find(
    name: str, assets: Mapping[str, AssetParams], data: DataParams
) -> LocalFile | LocalParts | None:
    """Where asset ``name`` lies in its root; None if it has no root, or is not there.

    An unpacked archive is preferred to the archive: it needs no further disk space.

    Raises:
        InputError: the root is no folder; it holds one part of the asset but lacks another; or it
            holds none of the root's assets (probably the wrong folder).
    """
    root = data.root_of(name)
    if root is None:
        return None
    placed, asset = data.assets[name], assets[name]
    where = f"data root {placed.root!r} ({root})"
    if not root.is_dir():
        raise InputError(f"{where}: no such folder; correct roots in data.yaml, or the environment")
    found = [(part, _place(root, part)) for part in placed.parts]
    there = tuple((part, place) for part, place in found if place is not None)
    if len(there) == len(found) > 0:
        return LocalParts(placed.root, there)
    archive = root / asset.file
    if archive.is_file():
        return LocalFile(archive)
    if there:
        lacking = next(part for part, place in found if place is None)
        raise InputError(
            f"{where}: {name}: {there[0][1]} is there, but none of "
            f"{', '.join(lacking.places)}; add it, put {asset.file} there, or set the root to "
            "null to download"
        )
    siblings = [key for key, other in data.assets.items() if other.root == placed.root]
    if not any(
        (root / assets[other].file).is_file()
        or any(_place(root, part) for part in data.assets[other].parts)
        for other in siblings
    ):
        raise InputError(
            f"{where}: holds nothing of {', '.join(siblings)}; name the folder with "
            f"{' or '.join([asset.file, *(part.places[0] for part in placed.parts[:1])])} in it"
        )
    return None


def _place(root: Path, part: PartParams) -> Path | None:
    present = Path.is_dir if part.files else Path.is_file
    return next((root / place for place in part.places if present(root / place)), None)


def link_parts(name: str, local: LocalParts, directory: Path, *, note: Path) -> dict[str, Any]:
    """Check the parts and make ``directory`` a folder of links to them.

    Names and sizes are always checked; contents are hashed again only if a name, size or
    time changed since ``note`` was written.

    Returns:
        ``files`` (number), ``bytes`` and ``sha256`` (over names, sizes and annotations' contents).

    Raises:
        InputError: an empty or missing file, or another number of files than the release has.
    """
    with _reading():
        listing = [file for part, place in local.parts for file in _list_part(name, part, place)]
    times = hash_json([[key, status.st_size, status.st_mtime_ns] for key, _, status, _ in listing])
    known = read_json(note) if note.is_file() else {}
    if known.get("times") != times:
        hashed = track(listing, total=len(listing), label=f"check {name}", unit="files")
        digest = hashlib.sha256()
        for key, path, status, content in hashed:
            with _reading(path):
                found = sha256_file(path) if content else "-"
            digest.update(f"{key} {status.st_size} {found}\n".encode())
        known = {
            "times": times,
            "files": len(listing),
            "bytes": sum(status.st_size for _, _, status, _ in listing),
            "sha256": digest.hexdigest(),
        }
        write_json(note, known)
    facts = {key: known[key] for key in ("files", "bytes", "sha256")}
    with atomic_directory(directory) as target:
        for part, place in local.parts:
            link = target / part.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link_to(place, link)
        write_json(target / RECORD, {"linked": local.root, **facts})
    return facts


@contextlib.contextmanager
def _reading(path: Path | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = path or error.filename
        reason = explain(error, where) or f"{where}: cannot be read ({error.strerror})"
        raise InputError(reason) from error


def _raise(error: OSError) -> None:
    raise error


def _list_part(
    name: str, part: PartParams, place: Path
) -> Iterator[tuple[str, Path, os.stat_result, bool]]:
    """Name in the archive, path, status, and whether the content is hashed, of each file."""
    if not part.files:
        yield part.path, place, _status(place, name), True
        return
    walked = os.walk(place, onerror=_raise)
    found = (Path(folder, file) for folder, _, files in walked for file in files)
    every = sorted(path for path in found if not is_stray(path.relative_to(place)))
    for files in part.files:
        own = [path for path in every if path.name.lower().endswith(files.suffix)]
        _count(name, files, place, len(own))
        for path in own:
            key = f"{part.path}/{path.relative_to(place).as_posix()}"
            yield key, path, _status(path, name), files.content


def _status(path: Path, name: str) -> os.stat_result:
    status = path.stat()
    if status.st_size == 0:
        raise InputError(
            f"{path}: empty; asset {name} is damaged there: repair it, or set the root to null"
        )
    return status


def _count(name: str, files: FilesParams, place: Path, found: int) -> None:
    wanted = image_count(files.count)
    if found < wanted or (files.exactly is not None and found > wanted):
        least = "" if files.exactly is not None else "at least "
        raise InputError(
            f"{place}: {found} files *{files.suffix}, {least}{wanted} are in the release (asset "
            f"{name}, {files.count}); complete the folder, or set the root to null to download"
        )
