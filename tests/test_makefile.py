"""``make`` sets up the environment again where it no longer works."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def set_up(folder: Path) -> str:
    """What ``make setup`` would run."""
    command = ("make", "--no-print-directory", "-n", "setup", f"PYTHON={sys.executable}")
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MAKEFLAGS": ""},
    ).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "Max's checkout"
    folder.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "params").symlink_to(ROOT / "params")
    (folder / ".venv").mkdir()
    command = f"command = /usr/bin/python3 -m venv {folder}/.venv\n"
    (folder / ".venv/pyvenv.cfg").write_text(f"home = /usr/bin\n{command}")
    (folder / ".venv/.ready").touch()
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    return folder


def test_an_environment_is_made_anew_after_a_move_and_only_then(checkout: Path) -> None:
    assert "Nothing to be done" in set_up(checkout)
    os.utime(checkout / "pyproject.toml")
    assert "-m venv" in (printed := set_up(checkout)) and "--clear" not in printed
    moved = checkout.rename(checkout.with_name("renamed"))
    assert f'-m venv --clear "{moved}/.venv"' in set_up(moved)


def test_an_environment_elsewhere_or_of_another_kind_is_never_cleared(checkout: Path) -> None:
    elsewhere = (checkout / ".venv").rename(checkout.with_name("environment"))
    (checkout / ".venv").symlink_to(elsewhere)
    assert "Nothing to be done" in set_up(checkout)
    (checkout / ".venv").unlink()
    elsewhere.rename(checkout / ".venv")
    (checkout / ".venv/pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9\n")
    os.utime(checkout / "pyproject.toml")
    assert "--clear" not in set_up(checkout)
