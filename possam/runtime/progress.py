"""Progress of long work: a bar on a terminal, plain lines in a log, always with an end in sight."""

import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


def duration(seconds: float) -> str:
    """``3725`` -> ``"1 h 02 min"``, ``125`` -> ``"2 min 05 s"``, ``9.4`` -> ``"9 s"``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """Count finished units of work and tell what is done, how fast, and when it will end.

    On a terminal the line is rewritten in place; in a log a new line is printed at most every
    ``every`` seconds, and one at the end. ``initial`` units were done before (a resumed job): they
    count as done but not for the speed. A ``total`` of 0 means that the end is not known.
    """

    def __init__(
        self,
        total: int,
        *,
        label: str,
        unit: str = "it",
        initial: int = 0,
        every: float = 10.0,
    ) -> None:
        self.total, self.label, self.unit = total, label, unit
        self.done = self._initial = initial
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._start = self._last = time.monotonic()
        self._closed = False
        self._shown = -1

    def update(self, count: int = 1, note: str = "") -> None:
        """Add ``count`` finished units; ``note`` (for example the loss) ends the line."""
        self.done += count
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self._print(now, note)

    def close(self, note: str = "") -> None:
        """Print the last line. Calling it twice does nothing."""
        if not self._closed:
            self._closed = True
            if note or self._shown != self.done:
                self._print(time.monotonic(), note)
            if self._terminal:
                sys.stderr.write("\n")
                sys.stderr.flush()

    def _print(self, now: float, note: str) -> None:
        self._shown = self.done
        elapsed = now - self._start
        fresh = self.done - self._initial
        speed = fresh / elapsed if elapsed > 0 else 0.0
        text = f"{self.label}: {self.done}"
        if self.total:
            text += f"/{self.total} {self.unit} ({100 * self.done // self.total} %)"
        else:
            text += f" {self.unit}"
        if fresh and speed > 0:
            text += f", {speed:.3g} {self.unit}/s, {duration(elapsed)}"
            if self.done < self.total:
                text += f", {duration((self.total - self.done) / speed)} left"
        if note:
            text += f" | {note}"
        sys.stderr.write(f"\r\x1b[K{text}" if self._terminal else text + "\n")
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close("stopped" if kind else "")


def track(items: Iterable[T], *, total: int, label: str, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` and show progress."""
    with Progress(total, label=label, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()
