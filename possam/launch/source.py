"""Frozen sources: a job's code and parameters, which no edit of the working tree changes.

A snapshot holds the package and ``params/`` (only files with ``SUFFIXES``) in a folder named by the
hash of their content, so equal sources share one folder.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from possam.pipeline.codehash import PACKAGE
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory
from possam.runtime.locks import hold

SUFFIXES = frozenset({".py", ".yaml", ".csv", ".json", ".j2"})
SNAPSHOTS = Path(".possam/source")
"""Below the project's root, which the cluster's nodes see as well."""

_LOCK_S = 120.0


def _sources(package: Path, params: Path) -> Iterator[tuple[str, bytes]]:
    for name, folder in ((package.name, package), ("params", params)):
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield f"{name}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _digest(sources: Iterable[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in sources:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def freeze(*, root: Path, package: Path = PACKAGE) -> Path:
    """Copy the package and ``root/params`` into a snapshot, or find the one that exists.

    Returns:
        The snapshot's folder, with ``possam/`` and ``params/``.
    """
    # Read once, so that hash and copy agree even if an editor saves a file meanwhile.
    held = list(_sources(package, root / "params"))
    folder = (root / SNAPSHOTS).resolve() / _digest(held)
    with hold(folder.parent / ".lock", timeout=_LOCK_S):
        if folder.is_dir() and not _is_as_named(folder):
            shutil.rmtree(folder)
        if not folder.is_dir():
            with atomic_directory(folder) as temporary:
                for name, content in held:
                    path = temporary / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
                    path.chmod(path.stat().st_mode & 0o555)
    return folder


def _is_as_named(folder: Path) -> bool:
    return _digest(_sources(folder / PACKAGE.name, folder / "params")) == folder.name


def check(folder: Path) -> None:
    """Raise an InputError if a snapshot was edited or is incomplete."""
    if not _is_as_named(folder):
        raise InputError(
            f"{folder}: these frozen sources were edited or are incomplete; remove the folder and "
            "submit again"
        )
