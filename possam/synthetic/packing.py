"""Zip and tar with fixed times, owners and modes: the same content gives the same bytes."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from possam.runtime.files import atomic_path

_EPOCH = (1980, 1, 1, 0, 0, 0)
_END_RECORD = 22
"""Bytes of a zip's last record."""


class FixedZip(zipfile.ZipFile):
    """A zip whose bytes depend only on its members; like upstream's, it has entries for folders."""

    def __init__(self, target: Path | IO[bytes]) -> None:
        super().__init__(target, "w")
        self._added: set[str] = set()

    def add(self, name: str, content: bytes, *, compress: bool = False) -> None:
        """Add a file; ``compress`` is for text, images are stored as they are."""
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth]) + "/"
            if folder not in self._added:
                self._added.add(folder)
                self._write(folder, (0o40755 << 16) | 0x10, b"")
        self._write(name, 0o100644 << 16, content, compress=compress)

    def _write(self, name: str, mode: int, content: bytes, *, compress: bool = False) -> None:
        info = zipfile.ZipInfo(name, _EPOCH)
        info.create_system, info.external_attr = 3, mode
        info.compress_type = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        self.writestr(info, content, compresslevel=6)


def cut_count(content: bytes, bits: int) -> bytes:
    """A zip whose end record states only the lowest ``bits`` of the number of its entries."""
    end = bytearray(content[-_END_RECORD:])
    for place in (8, 10):  # on this disk, on all disks
        count = int.from_bytes(end[place : place + 2], "little") % (1 << bits)
        end[place : place + 2] = count.to_bytes(2, "little")
    return content[:-_END_RECORD] + end


@contextmanager
def fixed_zip(path: Path) -> Iterator[FixedZip]:
    """A :class:`FixedZip` that takes the name ``path`` when it is complete."""
    with atomic_path(path) as temporary, FixedZip(temporary) as archive:
        yield archive


@contextmanager
def fixed_tar(path: Path, *, compress: bool = False) -> Iterator[tarfile.TarFile]:
    """A tar, plain or gzip, to fill with :func:`tar_add`; renamed to ``path`` when complete."""
    with atomic_path(path) as temporary, ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(open(temporary, "wb"))
        if compress:
            # By default the header would hold the file's name and the time.
            packed = gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0)
            stream = cast(IO[bytes], stack.enter_context(packed))
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            yield archive


def tar_add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file with fixed owner, mode and time."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(content), 0o644, 315532800
    archive.addfile(info, io.BytesIO(content))
