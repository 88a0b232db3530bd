"""Locks: one holder, seen by others, free when the holder ends."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from possam.runtime.errors import InputError
from possam.runtime.locks import hold, is_held, require_locks


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "below" / "lock"
    assert not is_held(path) and not path.exists()
    waited: list[str] = []
    with hold(path, timeout=0):
        assert is_held(path)
        with pytest.raises(TimeoutError, match="below/lock: held by another process"):
            with hold(path, timeout=0.05, on_wait=lambda: waited.append("once")):
                pytest.fail("two holders")
    assert waited == ["once"] and not is_held(path)
    with hold(path, timeout=0):
        assert is_held(path)


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from possam.runtime.locks import hold\n"
        "with hold(Path(sys.argv[1]), timeout=0): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        assert is_held(path)
        process.send_signal(signal.SIGKILL)
    assert not is_held(path)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_with_the_remedy(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: object, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "lock"
    require_locks(tmp_path)
    monkeypatch.setattr(fcntl, "flock", flock)
    message = f"{os.strerror(code)}.*mount option flock.*not nolock.*move the project"
    with pytest.raises(InputError, match=f"^{path}: .*{message}"), hold(path, timeout=60):
        pytest.fail("held")
    with pytest.raises(InputError, match=f"^{tmp_path}: .*{message}"):
        require_locks(tmp_path)
    assert not list(tmp_path.iterdir())
    path.touch()
    with pytest.raises(InputError, match=message):
        is_held(path)


def test_other_faults_of_a_file_system_keep_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(_: object, operation: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        require_locks(tmp_path)
