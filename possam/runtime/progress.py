"""Progress of long work by tqdm: a bar on a terminal, plain lines in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
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
    """Counts finished units of work; shows what is done, how fast, and when it will end.

    On a terminal tqdm rewrites the line in place; a log gets a new line at most every ``every``
    seconds, and one at the end. ``initial`` units were done before (a resumed job): they count as
    done, but not in the speed. A ``total`` of 0 means that the end is not known.
    """

    def __init__(
        self, total: int, *, label: str, unit: str = "it", initial: int = 0, every: float = 10.0
    ) -> None:
        from tqdm import tqdm  # not needed by what only imports this module

        self.done, self._total, self._every = initial, total or None, every
        self._shown: int | None = None
        self._start = self._last = time.monotonic()
        self._form = {"prefix": label, "unit": unit, "initial": initial}
        self._meter = tqdm.format_meter
        self._bar: tqdm[None] | None = None
        if sys.stderr.isatty():
            # smoothing=0: the mean speed, as in a log.
            look = {"mininterval": 0.2, "smoothing": 0, "dynamic_ncols": True}
            what = {"desc": label, "unit": unit, "initial": initial}
            self._bar = tqdm(total=self._total, file=sys.stderr, **what, **look)

    def update(self, count: int = 1, note: str = "") -> None:
        """Add ``count`` finished units; ``note`` (for example the loss) ends the line."""
        self.done += count
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._last >= self._every:
            self._print(note)

    def close(self, note: str = "") -> None:
        """Show the last line. A second call does nothing."""
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note)
            self._bar.close()
        elif self._shown != self.done or note:
            self._print(note)

    def _print(self, note: str) -> None:
        self._last, self._shown = time.monotonic(), self.done
        elapsed = self._last - self._start
        line = self._meter(
            self.done, self._total, elapsed, ncols=0, postfix=note or None, **self._form
        )
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("stopped" if kind else "")


def track(items: Iterable[T], *, total: int, label: str, unit: str = "it") -> Iterator[T]:
    """Iterate over ``items`` and show progress."""
    with Progress(total, label=label, unit=unit) as progress:
        for item in items:
            yield item
            progress.update()
