"""Several processes of one training on this machine, as a launcher would start them.

No part of PyTorch is imported here: the processes are commands, told who they are by the variables
that :func:`possam.training.distributed.join` reads.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO

from possam.runtime.environment import PROCESS_VARIABLES, Environment
from possam.runtime.errors import InputError

_PAUSE_S = 0.1
_PATIENCE_S = 20.0
"""How long the others may take to say that one is lost, before they are killed."""


def run_processes(command: Sequence[str], *, count: int) -> int:
    """Run ``count`` copies of ``command`` as processes 0..count-1 of one training.

    Output of process 0 goes where this process's goes. What another one wrote to its standard error
    is printed if it fails. When one ends with an error the others are ended, too; when this process
    is killed they are killed with it (on Linux).

    Returns:
        0, or the exit code of the process that failed (128 + the signal that killed it).

    Raises:
        InputError: no process at all, or a launcher has started this process already.
    """
    if count < 1:
        raise InputError(f"--processes {count}: at least 1 is needed")
    if Environment.load().processes.keys() & {"RANK", "WORLD_SIZE"}:
        raise InputError(
            f"--processes: {', '.join(PROCESS_VARIABLES)} are set, so a launcher starts the "
            "processes already; drop --processes, or unset them"
        )
    port, tie = _free_port(), _tie_to_parent()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        for rank in range(count):
            own: IO[bytes] | None = outputs[rank - 1] if rank else None
            processes.append(
                subprocess.Popen(
                    list(command),
                    env={**os.environ, **_variables(rank, count, port)},
                    stdout=subprocess.DEVNULL if rank else None,
                    stderr=own,
                    preexec_fn=tie,
                )
            )
        failed = _first_failure(processes)
        if failed is None:
            return 0
        _wait(processes, _PATIENCE_S)
        said: dict[str, list[str]] = {}
        for rank, output in enumerate(outputs, start=1):
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
            if processes[rank].poll() and text:
                said.setdefault(text, []).append(str(rank))
        for text, ranks in said.items():
            print(f"process {', '.join(ranks)} of {count}: {text}", file=sys.stderr)
        code = processes[failed].returncode
        if code < 0:
            name = signal.Signals(-code).name
            print(f"process {failed} of {count} was killed ({name})", file=sys.stderr)
        return code if code > 0 else 128 - code


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait for the first process that fails; None when all have ended well."""
    while True:
        codes = [process.poll() for process in processes]
        failed = [rank for rank, code in enumerate(codes) if code]
        if failed:
            # one that was killed takes the others with it
            return min(failed, key=lambda rank: codes[rank] or 0)
        if all(code == 0 for code in codes):
            return None
        time.sleep(_PAUSE_S)


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until all have ended, but not longer than ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_PAUSE_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Whatever happens, none of them stays."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    _wait(processes, 5.0)
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    values = (rank, count, rank, "127.0.0.1", port)
    names = dict(zip(PROCESS_VARIABLES, map(str, values), strict=True))
    # gloo would ask for this machine's own name, which not every resolver knows
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**loopback, **names}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tie_to_parent() -> Callable[[], None] | None:
    """What a child calls so that it is killed when its parent is; None where Linux is not."""
    if sys.platform != "linux":
        return None
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGKILL)
