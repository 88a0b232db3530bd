"""Faults of the machine or site, each as one sentence with its remedy.

Whatever library reports them: a full disk comes as an :class:`OSError`, as torch's "unexpected
pos", as SQLite's "database or disk is full". Everything else is a fault of the program.
"""

import errno
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

FULL = "the disk is full", "make room (df -h, df -i) and run the same command again"
QUOTA = (
    "your disk quota is used up",
    "remove files, or ask for a larger quota of bytes and files, and run the same command again",
)
READ_ONLY = (
    "the file system is read-only",
    "work in a copy of the project on one that can be written",
)
NO_ROOM = FULL, QUOTA, READ_ONLY
_DENIED = (
    "no permission",
    "correct owner and mode of it and of its folder (ls -ld), or work in a copy of your own",
)
_FILES = "too many open files", "raise the limit (ulimit -n 4096) and run again"
_PROCESSES = (
    "no further process or thread can be started",
    "raise the limit (ulimit -u), end other programs, or use fewer --workers",
)
_MEMORY = (
    "not enough memory",
    "end other programs, use fewer --workers, or a machine with more memory",
)
_STORAGE = (
    "the storage answers with an error",
    "run the same command again; if it stays, ask whoever looks after this file system",
)
_NETWORK = (
    "no network, or none to this host",
    "check the address, and http_proxy, https_proxy and no_proxy, then run again",
)
_PORT = "the port is taken", "end the program that has it, or give another --port"
SHARED_MEMORY = (
    "/dev/shm: semaphores and shared memory cannot be made here, or it is too small",
    "give the container a writable one (--shm-size=2g, --ipc=host), or use one process "
    "(--workers 1; training.workers: 0 in the scale's file)",
)
TEMPORARY = (
    "no folder for temporary files can be written",
    "set TMPDIR to an existing, writable folder with room",
)
SOCKET = (
    "the path of temporary files is too long for a socket (107 bytes)",
    "set TMPDIR to a shorter path, such as /tmp",
)
HOME = (
    "your account has no home folder or no name on this machine",
    "export HOME to a writable folder, and USER",
)
LOCALE = (
    "this locale cannot represent all characters",
    "export LC_ALL=C.UTF-8 (or PYTHONUTF8=1)",
)
CERTIFICATES = (
    "the certificate of the server, or of a proxy in between, is not trusted",
    "export SSL_CERT_FILE and REQUESTS_CA_BUNDLE to your site's certificates (docs/set-up.md)",
)

_BY_NUMBER = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: QUOTA,
    errno.EROFS: READ_ONLY,
    **dict.fromkeys((errno.EACCES, errno.EPERM), _DENIED),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), _FILES),
    errno.EAGAIN: _PROCESSES,
    errno.ENOMEM: _MEMORY,
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EREMOTEIO, errno.ENODEV), _STORAGE),
    **dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED), _NETWORK),
    **dict.fromkeys((errno.ETIMEDOUT, errno.ECONNRESET), _NETWORK),
    errno.EADDRINUSE: _PORT,
    errno.EFBIG: ("the file grew beyond a limit", "raise it (ulimit -f unlimited) and run again"),
    errno.ENAMETOOLONG: ("the name is too long", "use a folder with a shorter path"),
    errno.ENOTDIR: ("a part of the path is no folder", "rename or remove the file in its place"),
    errno.EISDIR: ("a folder is in the place of a file", "rename or remove it"),
    errno.EEXIST: ("something else is in its place", "rename or remove it"),
}
_BY_TEXT = tuple(
    (re.compile(pattern), fault)
    for pattern, fault in (
        (r"shared memory|torch_shm|\bshm_open|Bus error|sem_open|/dev/shm", SHARED_MEMORY),
        (r"No space left|disk is full|unexpected pos|failed writing file|requested and \d+ written",
         FULL),
        (r"Disk quota exceeded", QUOTA),
        (r"AF_UNIX path too long", SOCKET),
        (r"No usable temporary directory", TEMPORARY),
        (r"[Rr]ead-only file system|readonly database", READ_ONLY),
        (r"Permission denied|unable to open database file", _DENIED),
        (r"Too many open files", _FILES),
        (r"can't start new thread|Resource temporarily unavailable", _PROCESSES),
        (r"[Cc]an(?:no|')t allocate memory|out of memory", _MEMORY),
        (r"disk I/O error|Input/output error|Stale file handle|locking protocol", _STORAGE),
        (r"home directory|uid not found", HOME),
        (r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", CERTIFICATES),
        (r"Name or service not known|Temporary failure in name resolution", _NETWORK),
    )
)  # fmt: skip


def explain(error: BaseException) -> str | None:
    """``where: what; remedy`` in one line, if the machine or site is at fault; else None.

    Of a chain of exceptions, the first that is known decides.
    """
    for link in _chain(error):
        if (fault := fault_of(link)) is not None:
            what, remedy = fault
            where = getattr(link, "filename", None)
            detail = link.strerror if isinstance(link, OSError) and link.strerror else str(link)
            first = " ".join(detail.split())[:300]
            place = f"{os.fsdecode(where)}: " if isinstance(where, (str, bytes)) else ""
            return f"{place}{what} ({first or type(link).__name__}); {remedy}"
    if hidden := hidden_packages():
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}; {_unset(hidden)}"
    if (failed := next((e for e in _chain(error) if isinstance(e, ImportError)), None)) is None:
        return None
    if failed.name is not None and failed.name.partition(".")[0] == "possam":
        return None
    place = f" ({failed.path})" if failed.path else ""
    return f"a package cannot be imported: {failed}{place}; make setup installs what is needed"


def fault_of(error: BaseException) -> tuple[str, str] | None:
    """What is the matter with the machine, and the remedy; None if it is not the machine."""
    if isinstance(error, UnicodeEncodeError):
        return LOCALE
    if isinstance(error, OSError):
        frames = traceback.extract_tb(error.__traceback__)
        if any(frame.filename.endswith("multiprocessing/synchronize.py") for frame in frames):
            return SHARED_MEMORY
        if isinstance(error, TimeoutError) and error.errno is None:
            return None  # also raised for other reasons
        if error.errno in _BY_NUMBER:
            return _BY_NUMBER[error.errno]
    elif isinstance(error, MemoryError):
        return _MEMORY
    elif not isinstance(error, (RuntimeError, KeyError, ImportError)) and (
        type(error).__module__.partition(".")[0] not in _NATIVE
    ):
        return None
    return next((fault for form, fault in _BY_TEXT if form.search(str(error))), None)


_NATIVE = frozenset({"sqlite3", "sqlalchemy", "safetensors_rust", "pyarrow", "torch", "_pickle"})
"""Packages whose own exceptions pass on what the operating system said."""


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def hidden_packages() -> dict[str, list[str]]:
    """Folders of PYTHONPATH -> the modules in them that hide others of this Python's.

    ``module load`` of a site sets PYTHONPATH for another Python; its entries come first.
    """
    own = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    needed = {name for folder in own for name in _modules(folder)} | sys.stdlib_module_names
    found = {}
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        folder = Path(entry)
        if not entry or folder in own or (folder / "possam" / "__init__.py").is_file():
            continue
        if names := sorted(needed.intersection(_modules(folder))):
            found[entry] = names
    return found


def _modules(folder: Path) -> Iterator[str]:
    """Names of the modules in a folder; nothing if it cannot be read."""
    try:
        entries = sorted(os.listdir(folder))
    except OSError:
        return
    for name in entries:
        module, dot, suffix = name.partition(".")
        is_file = suffix == "py" or suffix.endswith("so")
        if is_file or (not dot and (folder / name / "__init__.py").is_file()):
            yield module


def _unset(hidden: dict[str, list[str]]) -> str:
    entry, names = next(iter(hidden.items()))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"PYTHONPATH names {entry}, whose {', '.join(names[:3])}{more} hide this environment's "
        "packages: unset PYTHONPATH and run again"
    )
