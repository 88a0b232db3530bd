"""A copy of the project in a temporary folder, with the smoke pipeline run in it once."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = ("params", "workflow", "possam", "data/towers")
FILES = ("Snakefile", "Makefile", "pyproject.toml", "requirements.lock", "README.md")
TARGETS = ("results/smoke/table1.csv", "results/smoke/table1.tracking.json")


@dataclass
class Workspace:
    """A project folder whose own copy of the package is the one that runs."""

    folder: Path

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = str(self.folder)
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), environment["PATH"]]
        )
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment["POSSAM_SCALE"] = environment["SCALE"] = "smoke"
        for name in ("MLFLOW_TRACKING_URI", "POSSAM_TRACKING_URI", "MAKEFLAGS", "MAKELEVEL"):
            environment.pop(name, None)
        return environment

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        done = self.run("snakemake", "--cores", "2", *arguments, check=check)
        return done.stdout + done.stderr

    def possam(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "possam.cli", *arguments, check=check)

    def files(self) -> set[Path]:
        """Every file but bytecode, logs and Snakemake's own."""
        skipped = {".snakemake", "__pycache__", "logs"}
        return {
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not skipped & set(path.relative_to(self.folder).parts)
        }


def copy_project(folder: Path) -> Workspace:
    """A fresh copy without results."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy2(REPOSITORY / name, folder / name)
    (folder / "profiles").symlink_to("workflow/profiles")
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    # make finds the environment that runs the tests.
    (folder / ".venv").symlink_to(sys.prefix)
    return Workspace(folder)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The smoke pipeline, run once; tests that edit it put it back as it was."""
    workspace = copy_project(tmp_path_factory.mktemp("smoke"))
    workspace.snakemake(*TARGETS)
    return workspace
