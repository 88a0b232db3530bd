"""What modules of loops that numba compiles have in common."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from possam.errors import PossamError


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
            f"{Path(__file__).parent}: numba can keep its compiled loops neither here nor in your "
            "cache folder; set NUMBA_CACHE_DIR to a folder that can be written"
        ) from error
