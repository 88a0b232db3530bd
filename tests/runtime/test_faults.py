"""Faults of the machine are one sentence with a remedy, whichever library reports them."""

import errno
import os
import sqlite3
import sysconfig
from pathlib import Path

import pytest

from possam import cli
from possam.runtime.faults import explain, hidden_packages

FAULTS = [
    (
        OSError(errno.ENOSPC, "No space left on device", "/x/a"),
        "/x/a: the disk is full",
        "make room",
    ),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota is used up", "larger quota"),
    (
        OSError(errno.EROFS, "Read-only file system", "/x"),
        "/x: the file system is read-only",
        "copy",
    ),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: no permission", "ls -ld"),
    (OSError(errno.EMFILE, "Too many open files"), "too many open files", "ulimit -n"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "process", "ulimit -u"),
    (OSError(errno.EADDRINUSE, "Address already in use"), "port is taken", "--port"),
    (OSError("AF_UNIX path too long"), "too long for a socket", "TMPDIR"),
    (FileNotFoundError(2, "No usable temporary directory found in ['/t']"), "temporary", "TMPDIR"),
    (RuntimeError("[enforce fail] . unexpected pos 64 vs 0"), "disk is full", "make room"),
    (RuntimeError("unable to open shared memory object </torch_1>"), "/dev/shm", "--workers 1"),
    (RuntimeError("DataLoader worker is killed by signal: Bus error."), "/dev/shm", "--shm-size"),
    (RuntimeError("can't start new thread"), "thread", "ulimit -u"),
    (RuntimeError("Could not determine home directory."), "home folder", "export HOME"),
    (KeyError("getpwuid(): uid not found: 12345"), "no name", "USER"),
    (sqlite3.OperationalError("database or disk is full"), "disk is full", "make room"),
    (sqlite3.OperationalError("attempt to write a readonly database"), "read-only", "copy"),
    (MemoryError(), "not enough memory", "--workers"),
    (UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range"), "locale", "LC_ALL=C.UTF-8"),
    (OSError("12345 requested and 100 written"), "disk is full", "make room"),
    (ImportError("libx.so: cannot open", name="numpy", path="/n.so"), "(/n.so)", "make setup"),
]


@pytest.mark.parametrize(("error", "what", "remedy"), FAULTS, ids=lambda value: str(value)[:40])
def test_a_fault_is_one_sentence_and_exit_code_2(
    error: Exception,
    what: str,
    remedy: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        try:
            raise error
        except Exception as reason:
            raise ValueError("a library's own words") from reason  # which hide the cause

    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr("possam.stages.check.check", fail)
    assert cli.main(["check"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("possam check: ") and what in line and "; " in line
    assert remedy in line.partition("; ")[2]


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("division by zero"),
        ValueError("No space left on device"),
        ModuleNotFoundError("No module named 'possam.x'", name="possam.x"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
    ],
)
def test_a_bug_is_no_fault_of_the_machine(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert explain(error) is None


def test_packages_that_a_module_puts_first_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").touch()
    (tmp_path / "dataclasses.py").touch()
    (tmp_path / "nobody_else_has_this.py").touch()
    own, checkout = sysconfig.get_path("purelib"), Path(__file__).parents[2]
    path = os.pathsep.join([str(checkout), own, str(tmp_path), "/nowhere", ""])
    monkeypatch.setenv("PYTHONPATH", path)
    assert hidden_packages() == {str(tmp_path): ["dataclasses", "numpy"]}
    text = explain(AttributeError("module 'numpy' has no attribute 'x'"))
    assert text is not None and str(tmp_path) in text and "unset PYTHONPATH" in text
