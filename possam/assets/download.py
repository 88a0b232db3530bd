"""One file over HTTP: resumed where it stopped, retried with growing pauses, with progress."""

import base64
import http.client
import json
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from possam.runtime.errors import ChecksumError, InputError
from possam.runtime.faults import CERTIFICATES, NO_ROOM, fault_of
from possam.runtime.files import write_json
from possam.runtime.progress import Progress
from possam.runtime.secrets import redact, split_credentials

_CHUNK = 1 << 20
_MEGABYTE = 1_000_000
_MAX_PAUSE = 60.0
# Request timeout, too early, too many requests: the only client errors that waiting may cure.
_TRANSIENT_CLIENT_ERRORS = frozenset({408, 425, 429})


class _Retry(Exception):
    """This attempt failed in a way that another one may cure."""


def download(
    url: str,
    partial: Path,
    *,
    label: str,
    size: int | None = None,
    retries: int = 6,
    backoff: float = 1.0,
    timeout: float = 60.0,
) -> None:
    """Fetch ``url`` into ``partial``.

    The transfer goes on from the end of ``partial`` if the server answers 206 for the same version
    of the file (``If-Range``), and otherwise starts again. An attempt fails after ``timeout``
    seconds of silence; ``retries`` failures in a row without new bytes end the download. The pause
    after the n-th failure is ``backoff * 2 ** (n - 1)`` s, at most a minute.

    Raises:
        ChecksumError: the size of the server's file is not ``size`` bytes (nothing is kept).
        InputError: the server refuses, the disk is full, or the attempts are used up; in
            the last two cases the partial file is kept for the next call.
    """
    failures = 0
    while True:
        before = _length(partial)
        try:
            _attempt(url, partial, label=label, size=size, timeout=timeout)
            _state_path(partial).unlink(missing_ok=True)
            return
        except _Retry as error:
            failures = 1 if _length(partial) > before else failures + 1
            if failures >= retries:
                raise InputError(
                    f"{redact(url)}: download failed after {failures} attempts ({error}); check "
                    "the network and run the same command again: it goes on at byte "
                    f"{_length(partial)}"
                ) from error
            pause = min(_MAX_PAUSE, backoff * 2 ** (failures - 1))
            sys.stderr.write(f"{label}: {error}; next attempt in {pause:.3g} s\n")
            time.sleep(pause)


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _state_path(partial: Path) -> Path:
    return partial.with_name(partial.name + ".json")


def _validator(url: str, partial: Path) -> str | None:
    """Version of the file that ``partial`` comes from; "" if unknown, None if not from ``url``."""
    try:
        state = json.loads(_state_path(partial).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(state, dict) and state.get("url") == redact(url)
    return str(state.get("validator", "")) if known else None


def _attempt(url: str, partial: Path, *, label: str, size: int | None, timeout: float) -> None:
    headers = {"User-Agent": "possam", "Accept-Encoding": "identity"}
    validator = _validator(url, partial)
    offset = 0 if validator is None else _length(partial)
    if size is not None and offset == size:
        return
    if offset:
        headers["Range"] = f"bytes={offset}-"
        if validator:
            headers["If-Range"] = validator
    address, credentials = split_credentials(url)
    request = urllib.request.Request(address, headers=headers)
    if credentials is not None:  # not for another host that the server may redirect to
        token = base64.b64encode(credentials.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            _receive(response, url, partial, label=label, size=size, offset=offset)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the partial file is longer than the server's
            partial.unlink(missing_ok=True)
            raise _Retry("the partial file is not a beginning of the server's file") from error
        if error.code >= 500 or error.code in _TRANSIENT_CLIENT_ERRORS:
            raise _Retry(f"the server answers {error.code} {error.reason}") from error
        raise InputError(
            f"{redact(url)}: the server answers {error.code} {error.reason}; correct urls in "
            "assets.yaml, or put the file in place by hand"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of a file here, which no further attempt opens
        fault = fault_of(error)
        if fault in NO_ROOM or fault == CERTIFICATES:
            place = redact(url) if fault == CERTIFICATES else partial
            raise InputError(f"{place}: {'; '.join(fault)}") from error
        raise _Retry(redact(error) or type(error).__name__) from error


def _receive(
    response: http.client.HTTPResponse, url: str, partial: Path, *, label: str, size: int | None,
    offset: int,
) -> None:  # fmt: skip
    """Write the body of ``response`` after the first ``offset`` bytes of ``partial``."""
    start, total = _span(response)
    if start != offset:
        if start:
            raise _Retry(f"the server sent byte {start} where byte {offset} was asked for")
        offset = 0
    if size is not None and total is not None and total != size:
        partial.unlink(missing_ok=True)
        raise ChecksumError(
            f"{redact(url)}: the server's file has {total} bytes, {size} are expected; the file "
            "changed upstream or the URL is wrong: correct size and checksum, or urls, in "
            "assets.yaml"
        )
    free = shutil.disk_usage(partial.parent).free
    if total is not None and free < total - offset:
        raise InputError(
            f"{partial.parent}: {total - offset} bytes are needed for {label}, {free} are free; "
            "make room and run again"
        )
    etag = response.headers.get("ETag", "")
    strong = "" if etag.startswith("W/") else etag
    validator = strong or response.headers.get("Last-Modified", "")
    write_json(_state_path(partial), {"url": redact(url), "validator": validator})
    limit = total if total is not None else size
    received = offset
    megabytes = (limit or 0) // _MEGABYTE
    with (
        Progress(megabytes, label=label, unit="MB", initial=offset // _MEGABYTE) as progress,
        open(partial, "r+b" if offset else "wb") as stream,
    ):
        stream.seek(offset)
        stream.truncate()
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            received += len(chunk)
            progress.update(received // _MEGABYTE - progress.done)
            if limit is not None and received > limit:
                break
    # Reading in pieces does not raise on a connection that ends early, so lengths are compared.
    if limit is not None and received < limit:
        raise _Retry(f"the connection ended at byte {received} of {limit}")


def _span(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte of the body within the file, and the file's length (None: not stated)."""
    if response.status == 206:
        span = re.fullmatch(
            r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
        )
        if span is None:
            raise _Retry("the server answered 206 without a Content-Range")
        return int(span[1]), None if span[2] == "*" else int(span[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None
