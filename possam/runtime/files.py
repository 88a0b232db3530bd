"""Atomic files, hashes and JSON.

A file is written under a temporary name in the same folder and renamed once it is complete. An
exception leaves nothing behind.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from possam.runtime.errors import InputError
from possam.runtime.json_text import parse_json


def _temporary(path: Path) -> Path:
    """An unused name beside ``path``, whose folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling of ``path``; rename it on success."""
    temporary = _temporary(Path(path))
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary sibling of ``path`` (``"w"`` UTF-8 or ``"wb"``); rename it on success."""
    if mode not in {"w", "wb"}:
        raise ValueError(f"atomic_write: mode must be 'w' or 'wb', not {mode!r}")
    with atomic_path(path) as temporary:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that takes the place of ``path`` on success."""
    path = Path(path)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            retired = _temporary(path)
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired)
        else:
            os.replace(temporary, path)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def remove_leftovers(folder: Path, *, of: str = "") -> None:
    """Remove the temporary files and directories that a killed process left in ``folder``.

    No other process may be writing there. ``of``: only leftovers of the file or directory ``of``.
    """
    pattern = f".{glob.escape(of)}.*.tmp" if of else ".*.tmp"
    for path in folder.glob(pattern) if folder.is_dir() else ():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_json(path: str | Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinities are refused: they are not JSON."""
    text = json.dumps(value, indent=indent, allow_nan=False)
    with atomic_write(path) as stream:
        stream.write(text + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file (``json_text.parse_json``); InputError if it is missing or malformed."""
    path = Path(path)
    try:
        return parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); the file may be truncated") from error


def hash_file(path: str | Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file's content (``algorithm`` as in :mod:`hashlib`)."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's content, hex."""
    return hash_file(path)


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON text of ``value`` (sorted keys, no spaces), hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
