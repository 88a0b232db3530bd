"""Importing modules whose loops numba compiles, and running such loops in threads."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from possam.runtime.errors import PossamError


@contextlib.contextmanager
def importing_loops() -> Iterator[None]:
    """A context in which to import a module of loops that numba compiles.

    Raises:
        PossamError: numba finds no folder to keep the compiled loops in.
    """
    try:
        yield
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        raise PossamError(
            f"{Path(__file__).parents[1]}: numba can keep its compiled loops neither here nor in "
            "your cache folder; set NUMBA_CACHE_DIR to a writable folder"
        ) from error


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
