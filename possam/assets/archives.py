"""Unpack untrusted zip and tar archives: nothing outside the folder, no links, no bombs."""

import contextlib
import hashlib
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from possam.params.data import PartParams, selection
from possam.runtime.errors import InputError, NotPermittedError
from possam.runtime.faults import NO_ROOM, fault_of
from possam.runtime.files import atomic_directory, read_json, write_json
from possam.runtime.progress import Progress
from possam.runtime.reading import check_readable, explain

_CHUNK = 1 << 20
_MEGABYTE = 1_000_000
# Small archives may compress very well without being bombs (label maps do).
_RATIO_FLOOR = 256 * _MEGABYTE
_SKIPPED = "__MACOSX"
MAX_BYTES = 200_000 * _MEGABYTE
MAX_FILES = 5_000_000
MAX_RATIO = 100.0
RECORD = "unpacked.json"
_END_RECORD = struct.Struct("<4s4H2LH")
"""A zip's last record (before a comment); its fifth field is the number of entries."""
_ZIP64 = 0xFFFF
"""The number of entries where another record has it."""
Keep = Callable[[str], bool]
"""Whether a file of an archive is unpacked, by its path in it."""


class _Budget:
    """Bytes and files that an archive may unpack to; counted before anything of it is written.

    ``directory``: where it is unpacked, which must have room; None: nothing is written.
    ``warts``: what is unusual about an archive, by its file name.
    """

    def __init__(
        self,
        archive: Path,
        directory: Path | None,
        *,
        max_bytes: int = MAX_BYTES,
        max_files: int = MAX_FILES,
        max_ratio: float = MAX_RATIO,
    ) -> None:
        self.archive, self._max_files = archive, max_files
        self.bytes = self.files = 0
        self.warts: dict[str, str] = {}
        allowed = max(max_ratio * archive.stat().st_size, _RATIO_FLOOR)
        self._limits = [
            (max_bytes, f"the limit is {max_bytes} bytes"),
            (int(allowed), f"that is more than {max_ratio:g} times its own size"),
        ]
        if directory is not None:
            reason = f"the disk of {directory} has no room for that; make room and run again"
            self._limits.append((shutil.disk_usage(directory).free, reason))

    def take(self, count: int, *, files: int = 0) -> None:
        """Count ``count`` bytes and ``files`` members; InputError if a limit is exceeded."""
        self.bytes += count
        self.files += files
        if self.files > self._max_files:
            raise InputError(
                f"{self.archive}: holds more than {self._max_files} members; do not use this "
                "archive, or unpack it by hand if its checksum is right"
            )
        for limit, reason in self._limits:
            if self.bytes > limit:
                raise InputError(
                    f"{self.archive}: unpacks to {self.bytes} bytes or more, and {reason}; if the "
                    "file is what it should be (checksum), unpack it by hand"
                )


def unpack(
    archive: Path,
    directory: Path,
    *,
    source_sha256: str | None = None,
    parts: Sequence[PartParams] = (),
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    max_ratio: float = MAX_RATIO,
) -> dict[str, Any]:
    """Unpack a ``.zip``, ``.tar`` or compressed tar into ``directory`` (replaced if it exists).

    Every member's name, kind and size is checked before the first is written, and ``directory``
    appears only when all is unpacked. Zip files inside the archive, as in COCO's panoptic
    annotations, are unpacked beside themselves (one level) and not kept; ``__MACOSX`` folders are
    left out.

    Args:
        source_sha256: SHA-256 of the archive, for the record; None: not known.
        parts: what is needed of it: nothing else is unpacked. Empty: everything is.
        max_bytes, max_files: limits of all that is unpacked; folders count as files.
        max_ratio: limit of bytes unpacked over bytes of the archive (small ones may exceed it).

    Returns:
        The record, also written as ``unpacked.json`` in ``directory``: ``archive`` (file name),
        ``sha256`` (of the archive), ``parts`` (what was needed of it; if everything, empty),
        ``files`` (number), ``bytes``, ``content`` (SHA-256 over the sorted names and file hashes)
        and ``warts`` (by archive: what is unusual about it).

    Raises:
        InputError: truncated or damaged archive; absolute path, ``..``, link, device, encrypted
            member, name written twice; more bytes or members than the limits allow, or more bytes
            than the disk has room for; none of the files of ``parts``.
    """
    check_readable(archive, missing="download it first")
    directory.parent.mkdir(parents=True, exist_ok=True)
    budget = _Budget(
        archive, directory.parent, max_bytes=max_bytes, max_files=max_files, max_ratio=max_ratio
    )

    def needed(name: str, folder: str = "") -> bool:
        path = str(PurePosixPath(folder, name))
        return not parts or any(part.holds(path) for part in parts)

    def needed_or_zip(name: str) -> bool:
        return _is_zip(name) or needed(name)

    with atomic_directory(directory) as target:
        hashes = _unpack_into(archive, target, budget, needed_or_zip, label=archive.name)
        for name in sorted(filter(_is_zip, hashes)):
            inner, folder = target / name, PurePosixPath(name).parent
            keep = partial(needed, folder=str(folder))
            found = _unpack_into(inner, inner.parent, budget, keep, label=name)
            inner.unlink()
            del hashes[name]
            hashes.update({str(folder / key): value for key, value in found.items()})
        if not hashes:
            raise InputError(
                f"{archive}: holds nothing of {', '.join(part.path for part in parts)}, which is "
                "needed of it; give the publisher's archive"
            )
        listing = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
        record = {
            "archive": archive.name,
            "sha256": source_sha256,
            "parts": selection(parts),
            "files": len(hashes),
            "bytes": sum((target / name).stat().st_size for name in hashes),
            "content": hashlib.sha256(listing.encode()).hexdigest(),
            "warts": budget.warts,
        }
        write_json(target / RECORD, record)
    return record


def is_unpacked(directory: Path, source_sha256: str, parts: Sequence[PartParams] = ()) -> bool:
    """Whether ``directory`` holds the archive of this hash, or all of it that ``parts`` need.

    The number and total size of the files must be those of the record. Contents are not read, so
    that a folder of 100,000 files is checked in seconds.

    Raises:
        NotPermittedError: this user may not read it, so that nobody can tell.
    """
    record = read_json(directory / RECORD) if (directory / RECORD).is_file() else None
    if not isinstance(record, dict) or record.get("sha256") != source_sha256:
        return False
    if record.get("parts", []) not in ([], selection(parts)):
        return False  # fewer files than are needed now

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(directory, onerror=refuse)
    files = (Path(folder, name) for folder, _, names in walked for name in names)
    try:
        sizes = [path.stat().st_size for path in files if path != directory / RECORD]
    except PermissionError as error:
        raise NotPermittedError(explain(error, error.filename)) from error
    except FileNotFoundError:  # a link to nowhere
        return False
    return (len(sizes), sum(sizes)) == (record.get("files"), record.get("bytes"))


def check_archive(archive: Path) -> None:
    """Check an archive without unpacking it: complete, readable, only members that may be unpacked.

    Contents of a zip's members are not decompressed: their checksums are checked by :func:`unpack`.

    Raises:
        InputError: as :func:`unpack`, except for what only unpacking shows, and for room.
    """
    check_readable(archive)
    with _readable(archive), open(archive, "rb") as stream:
        _scan(stream, archive, _Budget(archive, None), lambda name: True)


@contextlib.contextmanager
def _readable(archive: Path) -> Iterator[None]:
    """Turn errors of reading a damaged ``archive`` into an :class:`InputError`."""
    check_readable(archive)
    try:
        yield
    except (
        zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError,
        NotImplementedError,
    ) as error:  # fmt: skip
        reason = " ".join(str(error).split())
        raise InputError(
            f"{archive}: not a complete zip or tar archive ({reason}); it may be truncated: delete "
            "it and download it again"
        ) from error
    except OSError as error:
        if (fault := fault_of(error)) in NO_ROOM:
            raise InputError(f"{archive}: cannot be unpacked: {'; '.join(fault)}") from error
        # gzip and tarfile report damaged content as OSError, and so does a failing disk.
        raise InputError(f"{archive}: cannot be unpacked ({error}); download it again") from error


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _scan(stream: IO[bytes], archive: Path, budget: _Budget, keep: Keep) -> bool:
    """Check every member of the archive that ``stream`` reads; returns whether it is a zip."""
    is_zip = stream.read(2) == b"PK"
    stream.seek(0)
    (_check_zip if is_zip else _check_tar)(stream, archive, budget, keep)
    stream.seek(0)
    return is_zip


def _unpack_into(
    archive: Path, target: Path, budget: _Budget, keep: Keep, *, label: str
) -> dict[str, str]:
    """Unpack one archive; returns the SHA-256 of each file by its path in the archive."""
    hashes: dict[str, str] = {}
    is_empty = True
    total = archive.stat().st_size // _MEGABYTE
    with (
        _readable(archive),
        open(archive, "rb") as stream,
        Progress(total, label=f"unpack {label}", unit="MB") as progress,
    ):
        members = _zip_members if _scan(stream, archive, budget, keep) else _tar_members
        for name, open_member in members(stream, archive):
            is_empty = False
            if keep(name):
                hashes[name] = _write(open_member(), target / name, archive)
                progress.update(max(0, stream.tell() // _MEGABYTE - progress.done))
    if is_empty:
        raise InputError(f"{archive}: holds no file; download it again")
    return hashes


def _write(source: IO[bytes], path: Path, archive: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with source, open(path, "xb") as stream:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                stream.write(chunk)
    except FileExistsError as error:
        raise InputError(
            f"{archive}: {path.name} is in the archive twice; it was not made by the publisher's "
            "tools, or was tampered with: download it again"
        ) from error
    return digest.hexdigest()


def _safe_name(name: str, archive: Path) -> str | None:
    """``name`` as a relative path without ``.`` parts; None if the member is left out."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or not name.isprintable():
        raise InputError(
            f"{archive}: member {name!r} would be written outside the folder, or under a name that "
            "cannot be shown; nothing was unpacked, do not use this archive"
        )
    if not path.parts or path.parts[0] == _SKIPPED:
        return None
    if str(path) == RECORD:
        raise InputError(f"{archive}: member {name!r} has the name of this project's record file")
    return str(path)


def _refuse(archive: Path, name: str, kind: str) -> InputError:
    return InputError(
        f"{archive}: member {name!r} is {kind}; only files and folders are unpacked, do not use "
        "this archive"
    )


def _check_zip(stream: IO[bytes], archive: Path, budget: _Budget, keep: Keep) -> None:
    """Every entry is read, whatever number of them the end record states.

    In COCO's ``panoptic_train2017.zip`` it is cut to 16 bits: 52,751 of 118,287 entries.
    """
    bundle = zipfile.ZipFile(stream)
    stream.seek(-_END_RECORD.size - len(bundle.comment), os.SEEK_END)
    stated, entries = _END_RECORD.unpack(stream.read(_END_RECORD.size))[4], len(bundle.infolist())
    if stated not in (entries, _ZIP64):
        budget.warts[archive.name] = f"its end record counts {stated} of {entries} entries"
    for info in bundle.infolist():
        name = _safe_name(info.filename, archive)
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refuse(archive, info.filename, "a link or a device")
        if info.flag_bits & 0x1:
            raise _refuse(archive, info.filename, "encrypted")
        # zipfile reads at most the size that the zip's directory states, so this bound holds.
        budget.take(info.file_size if name is not None and keep(name) else 0, files=1)


Members = Iterator[tuple[str, Callable[[], IO[bytes]]]]
"""The files of an archive: the path of each, and a function that opens it."""


def _zip_members(stream: IO[bytes], archive: Path) -> Members:
    with zipfile.ZipFile(stream) as bundle:
        for info in bundle.infolist():
            name = _safe_name(info.filename, archive)
            if name is not None and not info.is_dir():
                yield name, partial(bundle.open, info)


def _check_tar(stream: IO[bytes], archive: Path, budget: _Budget, keep: Keep) -> None:
    with tarfile.open(fileobj=stream, mode="r:*") as bundle:
        for member in bundle:
            name = _safe_name(member.name, archive)
            budget.take(0, files=1)
            if member.isdir():
                continue
            if not member.isreg():
                raise _refuse(archive, member.name, "a link or a device")
            budget.take(member.size if name is not None and keep(name) else 0)
        # tarfile accepts a truncated file; a complete archive ends with a block of zeros.
        unpacked = bundle.fileobj
        if unpacked is None:
            raise tarfile.ReadError("closed while it was read")
        unpacked.seek(bundle.offset)
        if unpacked.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("the end-of-archive mark is missing")
        while rest := unpacked.read(_CHUNK):  # a compressed stream's checksum is at its end
            budget.take(len(rest))


def _tar_members(stream: IO[bytes], archive: Path) -> Members:
    with tarfile.open(fileobj=stream, mode="r:*") as bundle:
        for member in bundle:
            name = _safe_name(member.name, archive)
            if name is None or member.isdir():
                continue
            yield name, partial(_tar_member, bundle, member, archive)


def _tar_member(bundle: tarfile.TarFile, member: tarfile.TarInfo, archive: Path) -> IO[bytes]:
    source = bundle.extractfile(member)
    if source is None:
        raise _refuse(archive, member.name, "without content")
    return source
