"""Locks on files: filelock's, which the system frees however a process ends."""

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

    Waits ``timeout`` seconds for another process; calls ``on_wait`` once if it has to wait.

    Raises:
        TimeoutError: another process has held it all the time.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # Without flock() on a file system, filelock would leave locks behind that outlive a kill.
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
    # A shared lock: two onlookers must not take each other for the holder.
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
