"""Jobs that a fork server runs behave as if the command ran them itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from possam.runtime import forkserver

# A module whose function stands in for the command line.
JOBS = """
import os, signal, sys, time
from pathlib import Path

# A process that is started with Ctrl-C ignored (in a script's background) ignores it here too.
signal.signal(signal.SIGINT, signal.default_int_handler)

def job(arguments):
    kind, *values = arguments
    if kind == "exit":
        return int(values[0])
    if kind == "say":
        print(os.getcwd(), os.environ["GIVEN"], "POSSAM_FORKSERVER" in os.environ)
        print("error text", file=sys.stderr)
        return 0
    if kind == "fail":
        raise RuntimeError("a bug")
    if kind == "modules":
        print(sorted(name for name in sys.modules if name.startswith("possam")))
        return 0
    if kind == "kill":
        os.kill(os.getpid(), 9)
    if kind == "wait":
        try:
            Path(values[0]).write_text(str(os.getpid()))
            time.sleep(60)
        except KeyboardInterrupt:
            Path(values[0]).write_text("interrupted")
            return 130
    return 1
"""
# The server itself, with nothing to import before it forks.
SERVER = """
import sys
from pathlib import Path
from possam.runtime import forkserver

forkserver._LIBRARIES = ()
forkserver.serve(Path(sys.argv[1]), "jobs_of_tests:job")
"""
CLIENT = """
import os, sys
from possam.runtime import forkserver

sys.path.insert(0, os.environ["JOBS"])
sys.exit(forkserver.ask(sys.argv[1], sys.argv[2:]))
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A running server; its socket is ``tmp_path / "server" / "jobs"``."""
    folder = tmp_path / "server"
    folder.mkdir()
    (tmp_path / "jobs_of_tests.py").write_text(JOBS)
    monkeypatch.setenv("JOBS", str(tmp_path))
    command = [sys.executable, "-c", SERVER, str(folder / "jobs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        until((folder / "jobs").exists)
        yield process
        process.kill()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def client(tmp_path: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", CLIENT, str(tmp_path / "server" / "jobs"), *arguments]


def waiting(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A command whose job waits, and the job's process."""
    note = tmp_path / "note"
    command = subprocess.Popen(client(tmp_path, "wait", str(note)))
    until(lambda: note.exists() and note.read_text() != "")
    time.sleep(0.2)  # the command listens a moment later than its job begins
    return command, int(note.read_text())


@pytest.mark.usefixtures("server")
def test_exit_code_streams_folder_and_environment_are_those_of_the_command(tmp_path: Path) -> None:
    for code in (0, 2, 77):
        assert subprocess.run(client(tmp_path, "exit", str(code)), check=False).returncode == code
    here = tmp_path / "here"
    here.mkdir()
    said = subprocess.run(
        client(tmp_path, "say"),
        cwd=here,
        env={**os.environ, "GIVEN": "ä b", "POSSAM_FORKSERVER": "x"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == f"{here} ä b False\n"
    assert said.stderr == "error text\n"


@pytest.mark.usefixtures("server")
def test_a_bug_shows_its_traceback_and_fails(tmp_path: Path) -> None:
    done = subprocess.run(client(tmp_path, "fail"), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


@pytest.mark.usefixtures("server")
def test_a_job_runs_the_code_that_its_command_would_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's own import path, and nothing of the package that the server has imported."""
    done = subprocess.run(client(tmp_path, "modules"), capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    other = tmp_path / "other"
    other.mkdir()
    (other / "jobs_of_tests.py").write_text("def job(arguments):\n    return 55\n")
    monkeypatch.setenv("JOBS", str(other))
    assert subprocess.run(client(tmp_path, "modules"), check=False).returncode == 55


def test_the_server_imports_nothing_else_of_the_package() -> None:
    """An edit of another module would not reach the jobs."""
    code = "import sys, possam.runtime.forkserver; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = [name for name in done.stdout.split() if name.partition(".")[0] == "possam"]
    names = ("", ".runtime", ".runtime.environment", ".runtime.forkserver", ".runtime.version")
    assert own == [f"possam{name}" for name in names]


@pytest.mark.usefixtures("server")
def test_a_killed_job_is_a_failed_command(tmp_path: Path) -> None:
    done = subprocess.run(client(tmp_path, "kill"), capture_output=True, text=True, check=False)
    assert done.returncode == forkserver.KILLED
    assert "was killed" in done.stderr


@pytest.mark.usefixtures("server")
def test_a_killed_command_takes_its_job_along(tmp_path: Path) -> None:
    command, job = waiting(tmp_path)
    command.kill()
    command.wait()
    until(lambda: not alive(job))


@pytest.mark.usefixtures("server")
def test_ctrl_c_reaches_the_job_and_its_exit_code_comes_back(tmp_path: Path) -> None:
    command, _ = waiting(tmp_path)
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    assert (tmp_path / "note").read_text() == "interrupted"


@pytest.mark.usefixtures("server")
def test_a_terminated_command_terminates_its_job(tmp_path: Path) -> None:
    command, job = waiting(tmp_path)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == forkserver.KILLED
    until(lambda: not alive(job))


def test_the_server_ends_with_its_parent_and_leaves_no_file(
    server: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert server.stdin is not None
    server.stdin.close()
    assert server.wait(30) == 0
    assert not (tmp_path / "server").exists()


def test_without_a_server_the_command_does_it_itself_and_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "possam", "table", "table99", "--scale", "smoke"],
        env={**os.environ, "POSSAM_FORKSERVER": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no fork server" in done.stderr
    assert "table99" in done.stderr


def test_where_no_server_can_start_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (long := tmp_path / ("long" * 25)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    monkeypatch.setenv("POSSAM_FORKSERVER", "")
    forkserver.lend("jobs_of_tests:job")
    assert not os.environ["POSSAM_FORKSERVER"] and not list(long.iterdir())
    error = capsys.readouterr().err
    assert "no fork server" in error and "set a shorter one" in error
