"""Fetch upstream files: resumable, checked before they are renamed, each with a record.

In the folder of the assets, beside a file ``F`` of asset ``A``: ``A.record.json`` (the record that
the pipeline tracks), ``pins.json`` (checksums pinned on first use), and the hidden
``.F.verified.json`` (what was hashed when), ``.F.part`` (a download under way) and ``.F.lock``. A
file in a user's data root is linked to; an archive unpacked there has a record but no file here.
"""

import contextlib
import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

from possam.assets.archives import check_archive
from possam.assets.download import download
from possam.params.assets import AssetParams
from possam.runtime.errors import ChecksumError, InputError, PossamError
from possam.runtime.faults import NO_ROOM, fault_of
from possam.runtime.files import atomic_path, link_to, read_json, write_json
from possam.runtime.locks import hold
from possam.runtime.progress import Progress
from possam.runtime.reading import reading
from possam.runtime.secrets import redact

_CHUNK = 1 << 20
_MEGABYTE = 1_000_000
PINS = "pins.json"


@dataclass(frozen=True)
class _Expected:
    """What a file must be. ``algorithm`` None: no checksum is published, and none is pinned yet."""

    algorithm: str | None
    digest: str | None
    size: int | None
    _: KW_ONLY
    pinned: bool
    origin: str


def record_path(directory: Path, name: str) -> Path:
    """Where the record of asset ``name`` lies (no asset's file has such a name)."""
    return directory / f"{name}.record.json"


def partial_path(target: Path) -> Path:
    """Where the unfinished download of ``target`` lies."""
    return target.with_name(f".{target.name}.part")


def fetch(
    asset: AssetParams,
    *,
    name: str,
    directory: Path,
    world_manifest: Path | None,
    base: Path,
    local: Path | None = None,
    retries: int = 6,
    backoff: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """Bring one asset to ``directory`` and write its record ``<directory>/<name>.record.json``.

    A file that is there and matches its checksum is kept, and hashed again only if its size or time
    changed since. The record holds no times, so that the same file always has the same record.

    Args:
        asset, name: what to fetch: an entry of ``params/assets.yaml``, and its key.
        directory: where files and records go; one folder per scale.
        world_manifest: the procedural world's manifest; its folder replaces ``{world}``.
        base: folder that paths of ``file:`` URLs and manifests are relative to (the repository).
        local: the file in a data root of the user, taken instead of ``urls``: checked and linked.
        retries, backoff, timeout: see :func:`possam.assets.download.download`.

    Returns:
        Path of the file.

    Raises:
        ChecksumError: a download (which is removed) or a user's file is not the file expected.
        InputError: no source could deliver, or no source is known (the message says what to do).
    """
    directory.mkdir(parents=True, exist_ok=True)
    patience = {"retries": retries, "backoff": backoff, "timeout": timeout}
    fetching = _Fetching(asset, name, directory, world_manifest, base, patience)
    with _exclusive(directory / f".{asset.file}.lock", name):
        expected = fetching.expected()
        facts = fetching.present(expected)
        if facts is None:
            facts = fetching.link(local, expected) if local else fetching.obtain(expected)
        if expected.algorithm is None:
            if asset.unpack:
                check_archive(fetching.target)  # else a truncated file might be pinned
            _pin(directory, asset.file, facts, name)
        checksum = f"{expected.algorithm or 'sha256'}:{expected.digest or facts['sha256']}"
        _record(asset, name, directory, facts, checksum=checksum, pinned=expected.pinned)
    return fetching.target


def _record(
    asset: AssetParams, name: str, directory: Path, facts: Mapping[str, Any], *, checksum: str,
    pinned: bool,
) -> None:  # fmt: skip
    record = {
        "asset": name,
        "file": asset.file,
        **{key: facts[key] for key in ("bytes", "sha256", "source")},
        "checksum": checksum,
        "pinned": pinned,
        "licence": asset.licence,
    }
    write_json(record_path(directory, name), record)


def record_unpacked(
    asset: AssetParams, *, name: str, directory: Path, facts: Mapping[str, Any], source: str
) -> None:
    """Pin an archive that a user has unpacked, and write its record.

    A published checksum is that of the archive; for an unpacked folder, names, sizes and contents
    (``facts``, see :func:`possam.assets.roots.link_parts`) are pinned on first use.

    Raises:
        ChecksumError: the folder is not the one that was pinned.
    """
    key, digest = f"{name} (unpacked)", facts["sha256"]
    pin = _read_pins(directory).get(key)
    if pin is None:
        _pin(directory, key, facts, name)
    elif pin["sha256"] != digest:
        raise ChecksumError(
            f"{source}: {name}: sha256 {pin['sha256']} of names, sizes and annotations is pinned "
            f"in {directory / PINS}, {digest} was found: files changed there since; restore them, "
            "or remove the entry to pin anew"
        )
    facts = {"bytes": facts["bytes"], "sha256": digest, "source": source}
    _record(asset, name, directory, facts, checksum=f"unpacked-sha256:{digest}", pinned=True)


def _exclusive(path: Path, name: str) -> contextlib.AbstractContextManager[None]:
    """Hold a lock; a second process waits until the first one has the file."""
    waiting = f"{name}: another process fetches it; waiting\n"
    return hold(path, timeout=math.inf, on_wait=lambda: print(waiting, end="", file=sys.stderr))


def _read_pins(directory: Path) -> dict[str, dict[str, Any]]:
    path = directory / PINS
    if not path.exists():
        return {}
    pins = read_json(path)
    if not isinstance(pins, dict) or not all(
        isinstance(pin, dict) and {"sha256", "bytes"} <= pin.keys() for pin in pins.values()
    ):
        raise InputError(f"{path}: not a file of pins; delete it to pin on first use again")
    return pins


def _pin(directory: Path, file: str, facts: Mapping[str, Any], name: str) -> None:
    with _exclusive(directory / f".{PINS}.lock", PINS):
        pins = _read_pins(directory)
        pins[file] = {"sha256": facts["sha256"], "bytes": facts["bytes"]}
        write_json(directory / PINS, dict(sorted(pins.items())))
    sys.stderr.write(
        f"{name}: no checksum is published for {file}; pinned sha256:{facts['sha256']} "
        f"in {directory / PINS}\n"
    )


def _chunks(path: Path, *, label: str) -> Iterator[bytes]:
    """Content of a file, in pieces, with progress; an InputError if it may not be read."""
    with reading(path), open(path, "rb") as stream:
        with Progress(path.stat().st_size // _MEGABYTE, label=label, unit="MB") as progress:
            while chunk := stream.read(_CHUNK):
                yield chunk
                progress.update(stream.tell() // _MEGABYTE - progress.done)


def _hash(path: Path, algorithm: str | None, *, label: str) -> dict[str, str]:
    """SHA-256 and, in the same pass, ``algorithm``."""
    digests = {key: hashlib.new(key) for key in {"sha256", algorithm or "sha256"}}
    for chunk in _chunks(path, label=label):
        for digest in digests.values():
            digest.update(chunk)
    return {key: digest.hexdigest() for key, digest in digests.items()}


@dataclass(frozen=True)
class _Fetching:
    """One asset on its way to its file ``target``."""

    asset: AssetParams
    name: str
    directory: Path
    world_manifest: Path | None
    base: Path
    patience: Mapping[str, Any]

    @property
    def target(self) -> Path:
        return self.directory / self.asset.file

    @property
    def note(self) -> Path:
        return self.target.with_name(f".{self.target.name}.verified.json")

    def verified(self, digests: dict[str, str], *, source: str) -> dict[str, Any]:
        """Write and return the note of what was hashed, with the file's size and time."""
        status = self.target.stat()
        note = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "source": source}
        write_json(self.note, note | digests)
        return note | digests

    def check(self, path: Path, expected: _Expected) -> tuple[dict[str, str], str | None]:
        """Hashes of a file, and what is wrong with it (None: nothing)."""
        digests = _hash(path, expected.algorithm, label=f"check {self.name}")
        found, size = digests.get(expected.algorithm or ""), path.stat().st_size
        origin = f"expected ({expected.origin})"
        if found != expected.digest:
            what = f"{expected.algorithm} {expected.digest}"
            return digests, f"{what} is {origin}, {found} was found ({size} bytes)"
        if expected.size not in (None, size):
            return digests, f"{expected.size} bytes are {origin}, {size} were found"
        return digests, None

    def path(self, text: str, *, field: str) -> Path:
        """The file that ``text`` of assets.yaml names: ``{world}`` and relative paths resolved."""
        if "{world}" in text:
            if self.world_manifest is None:
                raise InputError(
                    f"assets.yaml: {self.name}.{field}: {text!r} needs the procedural world; make "
                    "it first, and give its manifest"
                )
            text = text.replace("{world}", str(self.world_manifest.parent.absolute()))
        return self.base / text.removeprefix("//")

    def expected(self) -> _Expected:
        """What the file must be according to ``assets.yaml``, a manifest or a pin."""
        asset = self.asset
        if asset.checksum is None:
            pin = _read_pins(self.directory).get(asset.file)
            if pin is None:
                return _Expected(None, None, asset.size, pinned=True, origin="not pinned yet")
            pins = self.directory / PINS
            origin = f"pinned in {pins} on first use; remove the entry if upstream changed"
            size = asset.size or int(pin["bytes"])
            return _Expected("sha256", str(pin["sha256"]), size, pinned=True, origin=origin)
        algorithm, _, value = asset.checksum.partition(":")
        if algorithm != "manifest":
            return _Expected(algorithm, value, asset.size, pinned=False, origin="assets.yaml")
        path = self.path(value, field="checksum")
        manifest = read_json(path)
        try:
            entry = manifest["files"][asset.file]
            digest, size = str(entry["sha256"]), entry.get("bytes", asset.size)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: files.{asset.file}.sha256 is missing, and asset {self.name} is checked "
                "against it; make that manifest again"
            ) from error
        return _Expected("sha256", digest, size, pinned=False, origin=f"from {path}")

    def present(self, expected: _Expected) -> dict[str, Any] | None:
        """Facts about the file that is already there, or None if it must be fetched."""
        target, name = self.target, self.name
        if not target.exists():
            return None
        status = target.stat()
        note = read_json(self.note) if self.note.exists() else {}
        known = (note.get("bytes"), note.get("mtime_ns")) == (status.st_size, status.st_mtime_ns)
        if known and expected.digest in (None, note.get(expected.algorithm)):
            return note
        digests, fault = self.check(target, expected)
        if fault:
            if not self.asset.urls:
                raise ChecksumError(
                    f"{target}: {fault}; no source is known for asset {name}: put the right file "
                    "there"
                )
            sys.stderr.write(f"{name}: the file there does not match ({fault}); fetching it\n")
            return None
        same = note.get("sha256") == digests["sha256"]
        return self.verified(digests, source=note["source"] if same else "put in place by hand")

    def obtain(self, expected: _Expected) -> dict[str, Any]:
        """Try the URLs in their order; the first file that matches is renamed to ``target``."""
        name, target = self.name, self.target
        if not self.asset.urls:
            raise InputError(
                f"{target}: asset {name} cannot be downloaded without the user: "
                f"{self.asset.notes.strip()} Then put the file there under this name, or give its "
                f"link in assets.yaml ({name}.urls), or name a folder that has it, packed or "
                "unpacked, in data.yaml (roots)"
            )
        faults: list[PossamError] = []
        for url in self.asset.urls:
            try:
                digests = self._try(url, expected)
                partial_path(target).replace(target)
                return self.verified(digests, source=redact(url))
            except PossamError as error:
                faults.append(error)
        kind = ChecksumError if any(isinstance(f, ChecksumError) for f in faults) else InputError
        raise kind("\n".join(str(fault) for fault in faults)) from faults[-1]

    def _try(self, url: str, expected: _Expected) -> dict[str, str]:
        """Fetch ``url`` as the partial file and check it; returns its hashes."""
        name, partial = self.name, partial_path(self.target)
        if url.startswith("file:"):
            _copy(self.path(url.removeprefix("file:"), field="urls"), partial, name)
        else:
            download(url, partial, label=name, size=expected.size, **self.patience)
        digests, fault = self.check(partial, expected)
        if fault:
            partial.unlink()
            raise ChecksumError(
                f"{self.asset.file} from {redact(url)}: {fault}; the download was removed. Run "
                f"again; if it fails again the file changed upstream: correct "
                f"{name}.checksum in assets.yaml"
            )
        if self.asset.unpack:
            try:
                check_archive(partial)
            except InputError as error:
                partial.unlink()
                raise InputError(f"{redact(url)}: {error}; the download was removed") from error
        return digests

    def link(self, local: Path, expected: _Expected) -> dict[str, Any]:
        """Check the user's file where it is, and link to it."""
        digests, fault = self.check(local, expected)
        if fault:
            raise ChecksumError(
                f"{local}: {fault}; put the right file there, or take the folder out of roots in "
                "data.yaml to download"
            )
        with atomic_path(self.target) as link:
            link_to(local, link)
        return self.verified(digests, source="data root")


def _copy(source: Path, partial: Path, name: str) -> None:
    try:
        with open(partial, "wb") as writer:
            writer.writelines(_chunks(source, label=name))
    except InputError:
        partial.unlink(missing_ok=True)
        raise
    except OSError as error:
        partial.unlink(missing_ok=True)
        if (fault := fault_of(error)) in NO_ROOM:
            raise InputError(f"{partial}: {'; '.join(fault)}") from error
        raise InputError(
            f"{source}: cannot be copied for asset {name} ({error.strerror}); put the file there "
            f"or correct {name}.urls in assets.yaml"
        ) from error
