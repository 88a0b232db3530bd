"""Several processes of one training on this machine, started as a launcher would.

PyTorch is not imported here: the processes are commands, which learn their ranks from the variables
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
from collections.abc import Callable, Iterator, Sequence

from possam.runtime.environment import PROCESS_VARIABLES, Environment
from possam.runtime.errors import InputError

_INTERRUPTED = 130
"""Exit code of a process that Ctrl-C has ended."""
_PAUSE_S = 0.1
_PATIENCE_S = 20.0
"""How long processes may take to report the loss of another before they are terminated."""


def train_in_processes(
    scale: str,
    names: Sequence[str],
    *,
    seed: int | None,
    device: str | None,
    count: int,
    accept_code: bool = False,
) -> int:
    """Train in ``count`` processes on this machine (CUDA: one per GPU); see `run_processes`."""
    command = [sys.executable, "-m", "possam.cli", "train", *names, "--scale", scale]
    command += ["--device", device or "cpu", *([] if seed is None else ["--seed", str(seed)])]
    command += ["--accept-code"] if accept_code else []
    return run_processes(command, count=count)


def rehearse_in_processes(scale: str, *, device: str | None, count: int) -> int:
    """Rehearse in ``count`` processes on this machine; see `run_processes`."""
    command = [sys.executable, "-m", "possam.cli", "rehearse", "--scale", scale]
    return run_processes([*command, "--device", device or "cpu"], count=count)


def run_processes(command: Sequence[str], *, count: int) -> int:
    """Run ``count`` copies of ``command`` as processes 0..count-1 of one training.

    Output of process 0 goes where this process's output goes. Standard error of any other process
    is printed if it fails. When one process fails, the others are terminated; when this process is
    killed, all are killed with it (on Linux). Ctrl-C is passed on to all, once each time.

    Returns:
        0, or the exit code of the process that failed first (128 + signal if it was killed).

    Raises:
        InputError: a count below 1, or a launcher has started this process already.
    """
    if count < 1:
        raise InputError(f"--processes {count}: at least 1 is needed")
    if Environment.load().processes.keys() & {"RANK", "WORLD_SIZE"}:
        raise InputError(
            f"--processes: {', '.join(PROCESS_VARIABLES)} are set, so a launcher starts the "
            "processes already; drop --processes, or unset them"
        )
    port, die_with_parent = _free_port(), _death_signal()
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(1, count)]
        processes: list[subprocess.Popen[bytes]] = []
        stack.callback(_end, processes)
        for rank in range(count):
            process = subprocess.Popen(
                command,
                env={**os.environ, **_variables(rank, count, port)},
                stdout=subprocess.DEVNULL if rank else None,
                stderr=outputs[rank - 1] if rank else None,
                preexec_fn=die_with_parent,
                process_group=0,  # a terminal's Ctrl-C reaches only this process
            )
            processes.append(process)
        stack.enter_context(_interrupts_passed_on(processes))
        failed = _first_failure(processes)
        if failed is None:
            return 0
        _wait(processes, _PATIENCE_S)
        printed: dict[str, list[str]] = {}
        for rank, output in enumerate(outputs, start=1):
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
            if processes[rank].poll() not in (None, 0, _INTERRUPTED) and text:
                printed.setdefault(text, []).append(str(rank))
        for text, ranks in printed.items():
            print(f"process {', '.join(ranks)} of {count}: {text}", file=sys.stderr)
        code = processes[failed].returncode
        if code < 0:
            name = signal.Signals(-code).name
            print(f"process {failed} of {count} was killed ({name})", file=sys.stderr)
        return code if code > 0 else 128 - code


@contextlib.contextmanager
def _interrupts_passed_on(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def pass_on(number: int, _frame: object) -> None:
        for process in processes:
            process.send_signal(number)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until a process fails and return its rank; None when all have succeeded."""
    while True:
        codes = [process.poll() for process in processes]
        if failed := [rank for rank, code in enumerate(codes) if code]:
            # a killed process (negative code) makes the others fail, so it failed first
            return min(failed, key=lambda rank: codes[rank] or 0)
        if all(code == 0 for code in codes):
            return None
        time.sleep(_PAUSE_S)


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Wait until all processes have ended, but at most ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(_PAUSE_S)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Terminate the processes, then kill those still running (no effect on ended ones)."""
    for process in processes:
        process.terminate()
    _wait(processes, 5.0)
    for process in processes:
        process.kill()
        process.wait()


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    values = (rank, count, rank, "127.0.0.1", port)
    names = dict(zip(PROCESS_VARIABLES, map(str, values), strict=True))
    # gloo would resolve this machine's name, which does not work everywhere
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    return {**loopback, **names}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _death_signal() -> Callable[[], None] | None:
    """A function that a child calls to be killed with its parent; None if this is not Linux."""
    if sys.platform != "linux":
        return None
    prctl, set_death_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_death_signal, signal.SIGKILL)
