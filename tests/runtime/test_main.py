"""The command where its own libraries do not load: one sentence, and a doctor that goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def possam(module: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "possam", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(module)])},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("package", ["typer", "pydantic", "yaml"])
def test_a_package_of_another_python_is_named(tmp_path: Path, package: str) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('built for another Python')")
    done = possam(tmp_path, "check")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "built for another Python" in line
    assert f"PYTHONPATH names {tmp_path}, whose {package} hide" in line and "unset" in line


@pytest.mark.slow
def test_the_doctor_goes_on_without_its_libraries(tmp_path: Path) -> None:
    for package in ("typer", "numpy"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('built for another Python')")
    done = possam(tmp_path, "doctor", "--scale", "smoke")
    assert done.returncode in (1, 2) and "Traceback" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("problem  python path") for line in lines)
    assert any(line.startswith("problem  imports") and "numpy" in line for line in lines)
    assert lines[-1].startswith("scale smoke: ")
