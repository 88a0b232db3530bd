"""A server that imports PyTorch and the like once, and forks a child for each job of a pipeline.

Their import takes seconds, as long as many a job of a small scale. Apart from these libraries the
server imports only this module and :mod:`possam.runtime.environment`, so every job runs the code
that is in the package when the job starts. (The standard library's fork server belongs to one
program; here every job is a command of its own.)

The server ends with the process that started it (its standard input closes). To the ``possam``
command that asked for it, a job seems to run in that process: signals are passed on, the exit code
comes back, and killing the command kills the job. The Snakefile starts a server for jobs on this
machine; ``possam`` uses the server whose socket ``POSSAM_FORKSERVER`` names.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from possam.runtime.environment import FORKSERVER_VARIABLE, apply_mlflow_defaults

_LIBRARIES = (
    *("torch", "torchvision.transforms.v2", "open_clip", "segment_anything", "pycocotools.mask"),
    *("scipy.optimize", "scipy.stats", "sklearn.cluster", "matplotlib.figure", "pandas"),
    *("pyarrow.parquet", "pydantic", "numba", "mlflow.exceptions"),
    *("mlflow.store.tracking.sqlalchemy_store", "typer"),
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_STANDARD = (0, 1, 2)
_LARGEST_REQUEST = 16 << 20
_LONGEST_SOCKET = 107
"""Bytes of a UNIX socket's path on Linux, without the final zero."""

KILLED = 137
"""Exit code of a job that vanished: that of a shell after SIGKILL."""


def lend(entry: str) -> None:
    """Start a server for the commands that this process starts; it ends with this process.

    ``entry``: ``module:function``, which a job calls with its arguments for its exit code.
    Where a server is lent already, the commands use that one. Where none can be started, a line
    says so, and each command imports its libraries itself.
    """
    if os.environ.get(FORKSERVER_VARIABLE):
        return
    try:
        os.environ[FORKSERVER_VARIABLE] = str(start(entry))
    except OSError as error:
        text = f"no fork server ({error}): every job imports its libraries itself, seconds each"
        print(f"possam: {text}", file=sys.stderr, flush=True)


def start(entry: str) -> Path:
    """Start a server that ends with this process; see :func:`lend`.

    Returns:
        Its socket, which appears once the server listens.

    Raises:
        OSError: the folder of temporary files cannot be written, or its path is too long.
    """
    path = Path(tempfile.mkdtemp(prefix="possam-")) / "jobs"
    if len(os.fsencode(_staged(path))) > _LONGEST_SOCKET:
        path.parent.rmdir()
        raise OSError(f"TMPDIR={path.parents[1]} is too long for a socket; set a shorter one")
    process = subprocess.Popen(
        [sys.executable, "-m", "possam.runtime.forkserver", str(path), entry],
        stdin=subprocess.PIPE,
        # Ctrl-C is meant for jobs, which get it from their commands, and not for the server.
        start_new_session=True,
    )
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    return path


def _staged(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def serve(path: Path, entry: str) -> None:
    """Import the libraries, then fork a child for each request at the socket ``path``.

    Ends when standard input closes.
    """
    threading.Thread(target=_end_with_parent, args=(path,), daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        staged = _staged(path)
        listener.bind(str(staged))
        listener.listen(64)
        staged.rename(path)  # only now, so that a process that sees it can connect
        # The garbage collector finds nothing in these imports and takes a tenth of their time.
        gc.disable()
        apply_mlflow_defaults()
        for name in _LIBRARIES:
            importlib.import_module(name)
        if "numba" in _LIBRARIES:
            # The imports of numba's first compilation take as long as importing numba itself.
            sys.modules["numba"].njit(lambda number: number)(0)
        gc.enable()
        # The children's collectors do not touch frozen objects, so their pages stay shared.
        gc.freeze()
        _refuse_cuda()
        # So that the system reaps the children.
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
        The job's exit code; 137 if it was killed.

    Raises:
        OSError: no server answers at ``path``.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        request = json.dumps([list(arguments), os.getcwd(), dict(os.environ), sys.path])
        socket.send_fds(connection, [b"\n"], _STANDARD)
        connection.sendall(f"{request}\n".encode())
        with connection.makefile("rb") as answers:
            job = _number(answers)
            if job is None:
                raise ConnectionError("the server ended before the job began")
            with _passed_on(job):
                code = _number(answers)
    if code is None:
        text = f"possam {' '.join(arguments)}: the job was killed (out of memory?)"
        print(text, file=sys.stderr, flush=True)
    return KILLED if code is None else code


def _number(answers: IO[bytes]) -> int | None:
    """The number in the next line; None if the other end is gone."""
    try:
        line = answers.readline()
    except ConnectionError:
        return None
    return int(line) if line.endswith(b"\n") else None


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


def _do(connection: socket.socket, entry: str) -> None:
    """In the child: take the place of the command at the other end, up to the exit code."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Its own group: a terminal's Ctrl-C reaches only the command, which passes it on.
        os.setpgid(0, 0)
        _, streams, _, _ = socket.recv_fds(connection, 1, len(_STANDARD))
        request = connection.makefile("rb").readline(_LARGEST_REQUEST)
        if not request.endswith(b"\n") or len(streams) != len(_STANDARD):
            os._exit(1)
        for stream, standard in zip(streams, _STANDARD, strict=True):
            os.dup2(stream, standard)
            os.close(stream)
        arguments, folder, environment, sys.path[:] = json.loads(request)
        os.environ.clear()
        os.environ.update(environment)
        os.environ.pop(FORKSERVER_VARIABLE, None)
        os.chdir(folder)
        # The code is that which the command would import, maybe another checkout's.
        for name in [name for name in sys.modules if name.partition(".")[0] == "possam"]:
            del sys.modules[name]
        connection.sendall(b"%d\n" % os.getpid())
        threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
        module, _, function = entry.partition(":")
        sys.argv = ["possam", *arguments]
        code = getattr(importlib.import_module(module), function)(arguments)
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
            connection.sendall(b"%d\n" % code)
        os._exit(code)


def _end_with(connection: socket.socket) -> None:
    """Kill this job when the stream ends: the command sends nothing more, so it has ended."""
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
