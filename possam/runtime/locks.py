"""Locks on files, by filelock; the system frees them however a process ends."""

import contextlib
import errno
import fcntl
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from possam.runtime.errors import InputError

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK})
"""What flock() answers on Lustre mounted without the option ``flock``, on FUSE file systems without
locks, and on NFS without a lock daemon."""


@contextlib.contextmanager
def hold(
    path: Path, *, timeout: float, on_wait: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made if missing, left behind empty).

    Waits up to ``timeout`` seconds for another process; calls ``on_wait`` once if it must wait.

    Raises:
        TimeoutError: another process held the lock all the time.
        InputError: the file system has no locks.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    # No soft locks, filelock's substitute on file systems without flock(): they outlive a kill.
    lock = FileLock(path, poll_interval=0.2, fallback_to_soft=False)
    try:
        with _explained(path):
            try:
                lock.acquire(blocking=False)
            except Timeout:
                on_wait()
                lock.acquire(timeout=-1 if timeout == math.inf else timeout)
    except Timeout:
        raise TimeoutError(f"{path}: held by another process") from None
    except InputError:
        path.unlink(missing_ok=True)  # empty, and nobody can hold it
        raise
    try:
        yield
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on ``path``."""
    # A shared lock, so that two processes that ask do not take each other for the holder.
    if not path.is_file():
        return False
    with open(path, encoding="utf-8") as stream, _explained(path):
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def require_locks(folder: Path) -> None:
    """Raise an InputError if files below ``folder`` (which exists) cannot be locked."""
    with tempfile.TemporaryFile(dir=folder) as stream, _explained(folder):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise InputError(
            f"{path}: this file system has no file locks (flock: {error.strerror}), without which "
            "two processes could write the same files; let it be mounted with locks (Lustre: the "
            "mount option flock; NFS: with its lock daemon, not nolock), or move the project to a "
            "file system that has them"
        ) from error
