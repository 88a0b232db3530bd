"""Why a file cannot be read: missing, a folder, or without permission; and what to do about it.

A file that this user may not read is a good one: no message about it says to fetch it again.
"""

import contextlib
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from possam.runtime.errors import InputError, NotPermittedError


@contextlib.contextmanager
def reading(path: str | Path, *, missing: str = "") -> Iterator[None]:
    """Say why ``path`` cannot be read, where that is no fault of its content.

    ``missing``: the remedy if there is no such file, for example ``"train it"``.

    Raises:
        NotPermittedError: in the block, this user was not allowed to read the file.
        InputError: it was missing, or a folder. Errors of damaged content pass.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "no such file"
        if os.path.islink(path):
            what = f"a link to {os.readlink(path)}, where nothing is (a disk that is not mounted?)"
        raise InputError(f"{path}: {what}{missing and f'; {missing}'}") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder, where a file is expected; name the file") from error
    except PermissionError as error:
        raise NotPermittedError(not_permitted(path)) from error


def check_readable(path: str | Path, *, missing: str = "") -> None:
    """Raise the error of :func:`reading` unless ``path`` is a file that may be read.

    For libraries whose own errors do not tell a damaged file from one that may not be read.
    """
    with reading(path, missing=missing), open(path, "rb"):
        pass


def not_permitted(path: str | Path, *, action: str = "read") -> str:
    """One sentence: who may not read ``path``, what is in the way, and the remedy."""
    path = Path(path)
    chain = (*reversed(path.absolute().parents), path)
    blocked = next((one for one in chain if not _opens(one)), path)
    try:
        status = blocked.lstat()
        owner, mode = _user(status.st_uid), stat.filemode(status.st_mode)
    except OSError:
        owner, mode = "another user", "unknown permissions"
    user = _user(os.geteuid())
    return (
        f"{path}: user {user} may not {action} it ({blocked}: {mode}, owner {owner}); let {owner} "
        "give the permission (chmod), or use a copy of yours: the file itself may be good"
    )


def _opens(path: Path) -> bool:
    needed = os.X_OK if path.is_dir() else os.R_OK
    return os.access(path, needed, effective_ids=os.access in os.supports_effective_ids)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
