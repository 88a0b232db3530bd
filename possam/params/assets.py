"""Upstream files (``params/assets.yaml``)."""

from typing import Annotated

from pydantic import Field

from possam.runtime.options import Options, Positive

_CHECKSUM = r"^(sha256:[0-9a-f]{64}|sha1:[0-9a-f]{40}|md5:[0-9a-f]{32}|manifest:.+)$"


class AssetParams(Options):
    """One upstream file.

    ``urls`` (``http:``, ``https:``, ``file:``) are tried in order; an empty list means that the
    user puts the file in place. ``checksum`` is ``algorithm:hex``, ``manifest:<path>`` (a JSON file
    with ``{"files": {file name: {"sha256": ..., "bytes": ...}}}``) or ``null`` (none published:
    pinned on first use, and the pin is reported). ``{world}`` is the procedural world's folder.
    """

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]
    urls: tuple[Annotated[str, Field(pattern=r"^(https?|file):.+$")], ...]
    size: Positive | None = None
    """Bytes, as published; checked."""
    about: Positive | None = None
    """Approximate bytes where no size is published: for plans of disk space."""
    unpacked_about: Positive | None = None
    """Approximate bytes of the unpacked archive where they differ much from the archive's."""
    checksum: Annotated[str, Field(pattern=_CHECKSUM)] | None = None
    unpack: bool = False
    licence: str
    notes: str = ""
