"""Importing modules whose loops numba compiles, and running such loops in threads."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from possam.runtime.caches import settle_numba


@contextlib.contextmanager
def importing_loops() -> Iterator[None]:
    """A context in which to import a module of loops that numba compiles.

    They are kept in the first cache folder that can be written (:mod:`possam.runtime.caches`).
    """
    settle_numba()
    yield


def share_out(total: int, kernel: Callable[..., None], *arguments: Any) -> None:
    """Run ``kernel(*arguments, first, last)`` over ranges of 0..total, one per PyTorch thread."""
    import torch

    step = max(1, -(-total // torch.get_num_threads()))
    starts = range(0, total, step)
    if len(starts) <= 1:
        kernel(*arguments, 0, total)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        shares = [pool.submit(kernel, *arguments, at, min(at + step, total)) for at in starts]
        for share in shares:
            share.result()
