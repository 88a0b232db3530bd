"""Why a file cannot be read: missing, a folder, or not permitted; with the remedy.

A file that this user may not read may be a good one: no message about it says to fetch it again.
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
    except (IsADirectoryError, PermissionError) as error:
        kind = NotPermittedError if isinstance(error, PermissionError) else InputError
        raise kind(explain(error, path)) from error


def check_readable(path: str | Path, *, missing: str = "") -> None:
    """Raise the error of :func:`reading` unless ``path`` is a file that may be read.

    For libraries whose own errors do not tell a damaged file from one that may not be read.
    """
    with reading(path, missing=missing), open(path, "rb"):
        pass


def explain(error: OSError, path: str | Path) -> str | None:
    """Why ``path`` was not read, and the remedy, if it is a folder or not permitted; else None."""
    if isinstance(error, IsADirectoryError):
        return f"{path}: a folder, where a file is expected; name the file"
    return _not_permitted(Path(path)) if isinstance(error, PermissionError) else None


def _not_permitted(path: Path) -> str:
    user, remedy = _user(os.geteuid()), "use a copy of yours"
    chain = (*reversed(path.absolute().parents), path)
    blocked = next((one for one in chain if not _opens(one)), path)
    try:
        status = blocked.lstat()
    except OSError:
        return f"{path}: user {user} may not read it; {remedy}"
    owner, mode = _user(status.st_uid), stat.filemode(status.st_mode)
    return (
        f"{path}: user {user} may not read it ({blocked}: {mode}, owner {owner}); let {owner} give "
        f"the permission (chmod), or {remedy}. The file itself may be good"
    )


def _opens(path: Path) -> bool:
    """Whether a file can be read, or what is in a folder be reached; True if it does not exist."""
    if not os.path.lexists(path):
        return True
    effective = os.access in os.supports_effective_ids
    return os.access(path, os.X_OK if path.is_dir() else os.R_OK, effective_ids=effective)


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
