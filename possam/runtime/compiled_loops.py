"""What modules of loops that numba compiles have in common."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from possam.runtime.errors import PossamError


@contextlib.contextmanager
def importing_loops() -> Iterator[None]:
    """Within it such a module is imported; :class:`PossamError` if what numba compiles can be kept
    nowhere.
    """
    try:
        yield
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        raise PossamError(
            f"{Path(__file__).parents[1]}: numba can keep its compiled loops neither here nor in "
            "your cache folder; set NUMBA_CACHE_DIR to a folder that can be written"
        ) from error


def share_out(total: int, kernel: Callable[..., None], *arguments: Any, least: int = 1) -> None:
    """Run ``kernel(*arguments, first, last)`` over the parts 0..total of its work, a range of them
    in each of PyTorch's threads; ``least``: parts that are worth a thread.
    """
    import torch

    step = max(least, -(-total // torch.get_num_threads()))
    starts = range(0, total, step)
    if len(starts) <= 1:
        kernel(*arguments, 0, total)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        shares = [
            pool.submit(kernel, *arguments, start, min(start + step, total)) for start in starts
        ]
        for share in shares:
            share.result()
