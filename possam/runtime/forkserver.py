"""Jobs of one pipeline run that need not import torch each anew.

Importing PyTorch, open_clip and the like takes seconds, as long as many a job of a small scale. One
server process imports them once and forks a child for each job. Before it forks it imports of
``possam`` only this module and :mod:`possam.runtime.environment`, so that every job runs the code
that lies in the package when the job starts, as it would without the server. (The standard
library's fork server belongs to one program; here every job is a command of its own.)

The server ends with the process that started it (its standard input closes). A job ends with the
``possam`` command that asked for it, as if it ran in that process: signals are passed on, the exit
code comes back, and when the command is killed the job is killed too. The Snakefile starts a server
for jobs on this machine; ``possam`` uses it where ``POSSAM_FORKSERVER`` names its socket.
"""

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from possam.runtime.environment import FORKSERVER_VARIABLE, apply_mlflow_defaults

_LIBRARIES = (
    "torch",
    "torchvision.transforms.v2",
    "open_clip",
    "segment_anything",
    "pycocotools.mask",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.cluster",
    "matplotlib.figure",
    "pandas",
    "pyarrow.parquet",
    "pydantic",
    "numba",
    "mlflow.exceptions",
    "mlflow.store.tracking.sqlalchemy_store",
    "typer",
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_HEADER = struct.Struct("!I")
_STATUS = struct.Struct("!i")
_STANDARD = (0, 1, 2)
_LARGEST_REQUEST = 16 << 20
KILLED = 137
"""Exit code of a job that vanished, as a shell gives it for SIGKILL."""


def lend(entry: str) -> None:
    """Start a server for the commands that this process starts; it ends with this process.

    Args:
        entry: ``module:function`` that a job imports and calls with its arguments; it returns the
            exit code.
    """
    folder = Path(tempfile.mkdtemp(prefix="possam-"))
    process = subprocess.Popen(
        [sys.executable, "-m", "possam.runtime.forkserver", str(folder / "jobs"), entry],
        stdin=subprocess.PIPE,
        # Ctrl-C is for the jobs, which get it from their commands, not for the server.
        start_new_session=True,
    )
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    os.environ[FORKSERVER_VARIABLE] = str(folder / "jobs")


def serve(path: Path, entry: str) -> None:
    """Import the libraries, then fork a child for each request until standard input closes.

    Args:
        path: the socket.
        entry: as for :func:`lend`.
    """
    threading.Thread(target=_end_with_parent, args=(path,), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        staged = path.with_name(f".{path.name}")
        listener.bind(str(staged))
        listener.listen(64)
        staged.rename(path)  # whoever sees it can connect
        # The garbage collector finds nothing in these imports and takes a tenth of their time.
        gc.disable()
        apply_mlflow_defaults()
        for name in _LIBRARIES:
            importlib.import_module(name)
        if "numba" in _LIBRARIES:
            # What it imports only when it first compiles takes as long as its own import.
            sys.modules["numba"].njit(lambda number: number)(0)
        gc.enable()
        # The children's collectors do not touch what is here, so its pages stay shared.
        gc.freeze()
        _refuse_cuda()
        # Children are reaped by the system.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _do(connection, entry)
            connection.close()


def ask(path: str, arguments: Sequence[str]) -> int:
    """Let a child of the server at ``path`` run ``possam`` with ``arguments``.

    Returns:
        Its exit code; 137 if it was killed.

    Raises:
        OSError: no server answers there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        request = json.dumps(
            {"arguments": list(arguments), "folder": os.getcwd(), "environment": dict(os.environ)}
        ).encode()
        streams = array.array("i", _STANDARD)
        connection.sendmsg(
            [_HEADER.pack(len(request))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)]
        )
        connection.sendall(request)
        job = _receive(connection, _STATUS.size)
        if job is None:
            raise ConnectionError("the server ended before the job began")
        with _passed_on(_STATUS.unpack(job)[0]):
            status = _receive(connection, _STATUS.size)
        return _vanished(arguments) if status is None else int(_STATUS.unpack(status)[0])


def _vanished(arguments: Sequence[str]) -> int:
    print(
        f"possam {' '.join(arguments)}: the job was killed (out of memory?)",
        file=sys.stderr,
        flush=True,
    )
    return KILLED


@contextlib.contextmanager
def _passed_on(job: int) -> Iterator[None]:
    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(job, number)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    received = b""
    while len(received) < size:
        try:
            part = connection.recv(size - len(received))
        except ConnectionError:
            return None
        if not part:
            return None
        received += part
    return received


def _do(connection: socket.socket, entry: str) -> None:
    """In the child: take the place of the command at the other end, up to the exit code."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A terminal's Ctrl-C reaches the command, which passes it on: once is enough.
        os.setpgid(0, 0)
        header, streams, _, _ = socket.recv_fds(connection, _HEADER.size, len(_STANDARD))
        size = _HEADER.unpack(header)[0]
        request = _receive(connection, size) if size <= _LARGEST_REQUEST else None
        if request is None or len(streams) != len(_STANDARD):
            os._exit(1)
        for stream, standard in zip(streams, _STANDARD, strict=True):
            os.dup2(stream, standard)
            os.close(stream)
        asked = json.loads(request)
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.environ.pop(FORKSERVER_VARIABLE, None)
        os.chdir(asked["folder"])
        connection.sendall(_STATUS.pack(os.getpid()))
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        code = _call(entry, asked["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        # As at the end of an interpreter: threads, exit handlers, streams.
        for end in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
            end()
        for output in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                output.flush()
        with contextlib.suppress(OSError):
            connection.sendall(_STATUS.pack(code))
        os._exit(code)


def _call(entry: str, arguments: Sequence[str]) -> int:
    module, _, function = entry.partition(":")
    sys.argv = ["possam", *arguments]
    code: int = getattr(importlib.import_module(module), function)(arguments)
    return code


def _end_with(connection: socket.socket) -> None:
    """The command sends nothing more: the end of the stream is its end, and so its job's."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _end_with_parent(path: Path) -> None:
    while os.read(0, 1):
        pass
    path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()
    os._exit(0)


def _refuse_cuda() -> None:
    """A forked child cannot use a CUDA driver that its parent has opened."""
    maps = Path("/proc/self/maps")
    if maps.is_file() and "libcuda.so" in maps.read_text(encoding="utf-8", errors="replace"):
        print("possam: a library opens CUDA when it is imported; no fork server", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
