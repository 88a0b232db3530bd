"""Folders where libraries keep what they compile; one that cannot be written is replaced for now.

The replacement is a folder for temporary files, which ends with the process; a line says so once.
"""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

_TRIED = 1 << 16
"""Bytes written to try a folder: a full disk still takes an empty file."""


def write_fault(folder: Path) -> OSError | None:
    """Why a file cannot be written in ``folder``, which is made if it is missing; None if it can.

    Nothing is left in it; a folder that was made stays.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            stream.write(bytes(_TRIED))
            stream.flush()
    except OSError as error:
        return error
    return None


def numba_folder() -> Path | None:
    """Where numba keeps compiled loops: the first of its folders that can be written, or None."""
    from numba.misc.appdirs import AppDirs

    own = os.environ.get("NUMBA_CACHE_DIR")
    package = Path(__file__).parents[1] / "__pycache__"
    user = Path(AppDirs(appname="numba", appauthor=False).user_cache_dir)
    folders = [*([Path(own)] if own else []), package, user]
    return next((folder for folder in folders if write_fault(folder) is None), None)


@functools.cache
def settle_numba() -> None:
    """Have numba keep its compiled loops in the first folder that can be written.

    Raises:
        OSError: not even a folder for temporary files can be written.
    """
    import numba

    folder = numba_folder()
    if folder is None:
        folder = _for_now("compiled loops", "NUMBA_CACHE_DIR")
    if folder.name != "__pycache__":
        config: Any = numba.config
        config.CACHE_DIR = str(folder)


def settle_triton() -> None:
    """The same for Triton, in the environment of this process and of those that it starts."""
    if "TRITON_CACHE_DIR" in os.environ:
        return
    home = Path(os.environ.get("TRITON_HOME") or Path("~").expanduser())
    if write_fault(home / ".triton") is not None:
        folder = _for_now("compiled GPU kernels", "TRITON_CACHE_DIR")
        os.environ["TRITON_CACHE_DIR"] = str(folder)


def _for_now(what: str, variable: str) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="possam-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    text = f"{what} cannot be kept in a cache and are compiled again by every process"
    print(f"possam: {text}; set {variable} to a writable folder", file=sys.stderr, flush=True)
    return folder
