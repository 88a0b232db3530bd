"""Work on many items in several processes, with results in the order of the items."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from possam.runtime.errors import PossamError
from possam.runtime.faults import SHARED_MEMORY, SOCKET, fault_of
from possam.runtime.memory import keep_freed_memory

_WINDOW = 3
"""Chunks per worker that wait or run at a time."""

_LONGEST_SOCKET = 107
"""Bytes of a UNIX socket's path on Linux, without the final zero."""

_SOCKET = "/pymp-12345678/listener-12345678"
"""What the standard library adds to the folder of temporary files."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_chunks(
    job: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    *,
    workers: int,
    chunk: int,
    preload: str,
) -> Iterator[tuple[int, Result]]:
    """Apply ``job`` to ``items`` in chunks; yields (length of the chunk, its result) in order.

    Only a few chunks per worker wait or run at a time, so memory does not grow with the items. The
    first error, in the order of the items, is raised here as the job raised it. Workers end with
    this process, and only this process answers to Ctrl-C. Where processes cannot share anything,
    one does the work, and a line says why.

    Args:
        job: sent to every worker once; picklable, as are chunks, results and errors.
        workers: processes; with one worker or one chunk, everything is done in this process.
        chunk: items per chunk.
        preload: module that the fork server imports for the workers, only for speed. A process has
            one server, which the first call starts. The import may raise only ImportError.

    Raises:
        PossamError: a worker died.
    """
    chunks = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    if min(workers, len(chunks)) <= 1 or (workers := usable(min(workers, len(chunks)))) <= 1:
        keep_freed_memory()
        for part in chunks:
            yield len(part), job(part)
        return
    context = fork_server(preload)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(job,))
    try:
        waiting: deque[tuple[int, Future[Any]]] = deque()
        for part in chunks:
            with _undelivered():  # submit() starts workers
                waiting.append((len(part), pool.submit(_work, part)))
            if len(waiting) >= _WINDOW * workers:
                length, future = waiting.popleft()
                yield length, future.result()
        for length, future in waiting:
            yield length, future.result()
    except BrokenProcessPool as error:
        raise PossamError(
            "a worker process died, most likely for lack of memory; run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable(workers: int) -> int:
    """``workers``, or 0 where this machine lets processes share nothing; then a line says why."""
    if workers and (fault := sharing_fault()) is not None:
        _say_once(f"possam: {'; '.join(fault)}. One process does the work, more slowly.")
        return 0
    return workers


def sharing_fault() -> tuple[str, str] | None:
    """Why processes of one program cannot work together here, with the remedy; None if they can."""
    try:
        if len(os.fsencode(tempfile.gettempdir())) + len(_SOCKET) > _LONGEST_SOCKET:
            return SOCKET
        multiprocessing.get_context("forkserver").Lock()
    except (OSError, ImportError) as error:
        what, remedy = fault_of(error) or SHARED_MEMORY
        return f"{what} ({error})", remedy
    return None


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def fork_server(preload: str) -> ForkServerContext:
    """The context of processes that are forked from a server, which is started if none runs.

    The server has no threads; this process may have some. ``preload``: see :func:`in_chunks`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload])
    with _undelivered():
        resource_tracker.ensure_running()  # if the server started it, it would unblock Ctrl-C
    with _undelivered():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _undelivered() -> Iterator[None]:
    """Delay Ctrl-C and SLURM's warning before a time limit, SIGUSR2, for a moment.

    Processes that are started here never receive them. Both may go to every process: each would
    print a traceback, or end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_job: Callable[[Any], Any]


def _begin(job: Callable[[Any], Any]) -> None:
    """In a worker: keep the job and watch the parent."""
    global _job
    _job = job
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)


def _work(chunk: Sequence[Any]) -> Any:
    return _job(chunk)
