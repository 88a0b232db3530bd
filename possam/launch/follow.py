"""The log of a running job, as it grows."""

from collections.abc import Callable
from pathlib import Path

from possam.launch.records import RunRecords

_TAIL = 4096
"""Bytes at the end of an existing log that are shown first."""


class _Tail:
    """New whole lines of a file that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size if path.is_file() else 0
        self._at = max(0, size - _TAIL)
        # The file is entered in the middle of a line, whose rest is not shown.
        self._skip = self._at > 0

    def lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as stream:
            stream.seek(self._at)
            content = stream.read()
        whole, newline, _ = content.rpartition(b"\n")
        if not newline:
            return []
        self._at += len(whole) + 1
        lines = whole.decode(errors="replace").splitlines()
        if self._skip:
            self._skip, lines = False, lines[1:]
        return lines


class Follower:
    """Shows what the first process of ``job`` prints."""

    def __init__(self, records: RunRecords, job: str, *, say: Callable[[str], None]) -> None:
        self._tails = [_Tail(records.output(job)), _Tail(records.log(job))]
        self._say = say

    def show(self) -> None:
        """Print the lines that are new since the last call."""
        for tail in self._tails:
            for line in tail.lines():
                self._say(line)
