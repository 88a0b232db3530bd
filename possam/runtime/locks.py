"""Locks on files, by filelock; the system frees them however a process ends."""

import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def hold(
    path: Path, *, timeout: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if missing, left behind empty).

    Waits up to ``timeout`` seconds for another process; calls ``on_wait`` once if it must wait.

    Raises:
        TimeoutError: another process held the lock all the time.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # No soft locks, filelock's substitute on file systems without flock(): they outlive a kill.
    lock = FileLock(path, poll_interval=0.2, fallback_to_soft=False)
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            on_wait()
            lock.acquire(timeout=-1 if timeout == math.inf else timeout)
    except Timeout:
        raise TimeoutError(f"{path}: held by another process") from None
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on ``path``."""
    # A shared lock, so that two processes that ask do not take each other for the holder.
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
