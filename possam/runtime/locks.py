"""Locks on files, which the system frees however a process ends."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_PAUSE_S = 0.2


@contextlib.contextmanager
def hold(
    path: Path, *, timeout: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if missing, left behind empty).

    Args:
        timeout: seconds to wait for another process.
        on_wait: called once if there is anything to wait for.

    Raises:
        TimeoutError: another process has held it all the while.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as stream:
        deadline = time.monotonic() + timeout
        waiting = False
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{path}: held by another process") from None
                if not waiting:
                    waiting = True
                    on_wait()
                time.sleep(min(_PAUSE_S, max(timeout, 0.01)))
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on ``path``."""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
