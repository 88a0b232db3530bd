"""Results written in the formats of other tools, picture by picture.

``with Writers(["yolo", "geojson"], out) as writers: writers.add(result)`` writes several formats in
one pass, :func:`export` an iterable of results in one. Each file appears complete; those that list
all pictures appear last, when the ``with`` ends without an error.
"""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from possam.model.registry import load_part
from possam.pictures.exports.writer import Result, Writer
from possam.pictures.formats import FORMATS


def open_writer(name: str, out: Path | str, *, root: Path | str | None = None) -> Writer:
    """The writer of a format in ``FORMATS``; it writes to ``out``, a folder or a file.

    Args:
        root: folder of the pictures. What is written for ``root/a/b.jpg`` is called ``a/b``;
            without a root it is ``b``, or ``a/b`` if another picture is called ``b``.

    Raises:
        InputError: an unknown format, one whose packages are not installed, or ``out`` is a file
            where a folder is written, or a folder where a file is.
    """
    writer: Writer = load_part(FORMATS, name)(out, root=root)
    return writer


def export(
    name: str, results: Iterable[Result], out: Path | str, *, root: Path | str | None = None
) -> None:
    """Write ``results``, all of one vocabulary, in one format; see :func:`open_writer`.

    One result is held in memory at a time. Files of the same names are replaced, others stay.
    """
    with open_writer(name, out, root=root) as writer:
        for result in results:
            writer.add(result)


class Writers:
    """Writes results in several formats at once, each to ``<out>/<format>``, perhaps with a suffix.

    Arguments and errors: see :func:`open_writer`.
    """

    def __init__(
        self, names: Sequence[str], out: Path | str, *, root: Path | str | None = None
    ) -> None:
        parts = {name: load_part(FORMATS, name) for name in names}
        self._writers = [
            part(Path(out) / f"{name}{part.suffix}", root=root) for name, part in parts.items()
        ]
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for writer in self._writers:
            self._open.enter_context(writer)
        return self

    def add(self, result: Result) -> None:
        """Write what belongs to one picture."""
        for writer in self._writers:
            writer.add(result)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)
