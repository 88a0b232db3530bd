"""Work in several processes: results in order, errors as they were raised, clean ends."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from possam.runtime import pools as worker_pool
from possam.runtime.errors import InputError, PossamError
from possam.runtime.faults import SOCKET

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = "possam.runtime.memory"

in_chunks = partial(worker_pool.in_chunks, chunk=2, preload=PRELOAD)


def squares(numbers: Sequence[int]) -> list[int]:
    return [number**2 for number in numbers]


def refuse_odd(numbers: Sequence[int]) -> int:
    for number in numbers:
        if number % 2:
            time.sleep(0.3 if number < 5 else 0)  # a later chunk fails first
            raise InputError(f"{number}.png: size: odd; write it again")
    return len(numbers)


def mark(folder: Path, numbers: Sequence[int]) -> None:
    (folder / str(numbers[0])).touch()


def die(numbers: Sequence[int]) -> None:
    if 4 in numbers:
        os.kill(os.getpid(), signal.SIGKILL)


def process(numbers: Sequence[int]) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("items", [0, 1, 2, 5, 41])
def test_results_come_in_order(workers: int, items: int) -> None:
    found = list(in_chunks(squares, range(items), workers=workers))
    assert sum(count for count, _ in found) == items
    assert [value for _, part in found for value in part] == squares(range(items))


def test_workers_are_other_processes() -> None:
    ids = {found for _, found in in_chunks(process, range(40), workers=2)}
    assert ids and os.getpid() not in ids and len(ids) <= 2
    assert {found for _, found in in_chunks(process, range(2), workers=2)} == {os.getpid()}


def test_without_shared_memory_one_process_does_the_work_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("multiprocessing.context.ForkServerContext.Lock", refuse)
    for _ in range(2):
        found = list(in_chunks(process, range(40), workers=2))
        assert {one for _, one in found} == {os.getpid()}
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line and line.endswith(
        "One process does the work, more slowly."
    )


def test_a_long_path_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 75)
    assert worker_pool.sharing_fault() == SOCKET
    assert worker_pool.usable(2) == 0 and "TMPDIR" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "tempdir", "/" + "x" * 74)
    assert worker_pool.sharing_fault() is None and worker_pool.usable(2) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_in_order_arrives_as_it_was_raised(workers: int) -> None:
    with pytest.raises(InputError, match=r"^3\.png: size: odd; write it again$") as caught:
        list(in_chunks(refuse_odd, [0, 2, 4, 3, 6, 8, 7, 9, 10], workers=workers))
    assert type(caught.value) is InputError


def test_a_killed_worker_is_one_error() -> None:
    with pytest.raises(PossamError, match=r"a worker process died, .* fewer --workers"):
        list(in_chunks(die, range(30), workers=2))
    assert [count for count, _ in in_chunks(squares, range(4), workers=2)] == [2, 2]


def test_few_chunks_are_under_way(tmp_path: Path) -> None:
    results = in_chunks(partial(mark, tmp_path), range(200), workers=2)
    next(results)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) <= 2 * worker_pool._WINDOW
    results.close()
    assert len(list(tmp_path.iterdir())) <= 2 * worker_pool._WINDOW


PROGRAM = """
import sys, time
from possam.runtime.pools import in_chunks

def slow(numbers):
    time.sleep(0.05)

def main():
    print("begun", flush=True)
    try:
        preload = "possam.evaluation.preload"  # takes a while
        for _ in in_chunks(slow, range(10_000), workers=2, chunk=1, preload=preload):
            print("result", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that works in two processes for minutes, and is a group of its own."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    started = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        # As in a terminal; a shell's background job would ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    yield started
    if alive(started):
        os.killpg(started.pid, signal.SIGKILL)
    started.communicate()


def alive(started: subprocess.Popen[str]) -> bool:
    try:
        os.killpg(started.pid, 0)
    except ProcessLookupError:
        return False
    return True


def ends(started: subprocess.Popen[str]) -> bool:
    """Whether all processes of the group end by themselves, within a minute."""
    for _ in range(1200):
        started.poll()
        if not alive(started):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("line", ["begun", "result"])
def test_ctrl_c_ends_all_processes_without_a_word(
    program: subprocess.Popen[str], line: str
) -> None:
    """Also while the fork server still imports."""
    assert program.stdout is not None and program.stderr is not None
    assert any(found == f"{line}\n" for found in program.stdout)
    time.sleep(0.2)
    os.killpg(program.pid, signal.SIGINT)
    assert program.wait(timeout=120) == 130
    assert ends(program)
    assert program.stderr.read() == ""


def test_workers_end_with_a_killed_parent(program: subprocess.Popen[str]) -> None:
    assert program.stdout is not None
    assert any(found == "result\n" for found in program.stdout)
    program.kill()
    program.wait()
    assert ends(program)
