"""Several processes of a training on this machine; the commands here need no PyTorch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from possam import cli
from possam.launch.local_processes import run_processes
from possam.runtime.errors import InputError


def script(text: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        f"import os, sys, time, signal\nrank = os.environ['RANK']\n{text}",
    ]


def test_each_process_knows_who_it_is(tmp_path: Path) -> None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    write = f"print(*(os.environ[n] for n in {names}), file=open('{tmp_path}/' + rank, 'w'))"
    assert run_processes(script(write), count=3) == 0
    lines = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [line[:4] for line in lines] == [[str(r), "3", str(r), "127.0.0.1"] for r in range(3)]
    assert len({line[4] for line in lines}) == 1 and int(lines[0][4]) > 0


def test_only_the_output_of_process_0_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run_processes(script("print('out', rank); print('err', rank, file=sys.stderr)"), count=2)
        == 0
    )
    assert capfd.readouterr() == ("out 0\n", "err 0\n")


def test_a_failure_ends_the_others_and_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("possam.launch.local_processes._PATIENCE_S", 0.2)
    wait = f"""
if rank == '2':
    print('no such image', file=sys.stderr)
    sys.exit(3)
print(os.getpid(), file=open('{tmp_path}/' + rank, 'w'), flush=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN) if rank == '1' else None
time.sleep(600)
"""
    assert run_processes(script(wait), count=3) == 3
    assert capfd.readouterr().err == "process 2 of 3: no such image\n"
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_a_killed_process_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    kill = f"""
import fcntl, pathlib
lock, held = open('{tmp_path}/lock', 'w'), pathlib.Path('{tmp_path}/held')
if rank == '1':
    fcntl.flock(lock, fcntl.LOCK_EX)
    held.touch()
    os.kill(os.getpid(), signal.SIGKILL)
while not held.exists():
    time.sleep(0.01)
fcntl.flock(lock, fcntl.LOCK_EX)  # the other one is dead: fail because of that, as a training does
sys.exit(2)
"""
    assert run_processes(script(kill), count=2) == 137
    assert "process 1 of 2 was killed (SIGKILL)" in capfd.readouterr().err


def test_a_launcher_inside_a_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(InputError, match="a launcher starts the processes already"):
        run_processes(["false"], count=2)


def test_the_command_line_starts_copies_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def record(command: list[str], *, count: int) -> int:
        calls.append((command, count))
        return 7

    monkeypatch.delenv("POSSAM_FORKSERVER", raising=False)
    monkeypatch.setattr("possam.launch.local_processes.run_processes", record)
    given = ["train", "fcclip_coco", "--scale", "smoke", "--device", "cuda", "--seed", "3"]
    assert cli.main([*given, "--processes", "4"]) == 7
    assert calls == [([sys.executable, "-m", "possam.cli", *given], 4)]


def test_less_than_one_process_is_refused() -> None:
    with pytest.raises(InputError, match="--processes 0: at least 1"):
        run_processes(["false"], count=0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
def test_killing_the_starter_kills_all(tmp_path: Path) -> None:
    sleep = f"print(os.getpid(), file=open('{tmp_path}/' + rank, 'w'), flush=True)\ntime.sleep(600)"
    load = "from possam.launch.local_processes import run_processes"
    call = f"{load}\nrun_processes({script(sleep)!r}, count=2)"
    starter = subprocess.Popen([sys.executable, "-c", call], cwd=Path(__file__).parents[2])
    paths = [tmp_path / "0", tmp_path / "1"]
    while not all(path.exists() and path.read_text().strip() for path in paths):
        assert starter.poll() is None
        time.sleep(0.02)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    for path in paths:
        for _ in range(500):
            if not Path(f"/proc/{int(path.read_text())}").exists():
                break
            time.sleep(0.02)
        else:
            pytest.fail("a process outlived its starter")
