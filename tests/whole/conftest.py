"""A copy of the project in a temporary folder, with the smoke pipeline run in it once."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from possam.runtime.environment import FORKSERVER_VARIABLE
from possam.runtime.forkserver import start
from tests.support.sessions import signal_session

REPOSITORY = Path(__file__).resolve().parents[2]
COPIED = (*("params", "workflow", "profiles", "possam", "benchmarks"), "data/towers", ".dvc")
FILES = (
    *("Snakefile", "Makefile", "pyproject.toml", "requirements.lock", "README.md"),
    *("dvc.yaml", ".dvcignore", ".gitignore"),
)
TARGETS = ("results/smoke/table1.csv", "results/smoke/table1.tracking.json")


COMMAND = """
import sys
from possam.runtime.forkserver import ask

sys.exit(ask(sys.argv[1], sys.argv[2:]))
"""
"""The command line, in a child of the server at its first argument."""


@dataclass
class Workspace:
    """A project folder whose own copy of the package is the one that runs.

    Its jobs and commands are run by the fork server at ``server``, if there is one: the import of
    PyTorch and the like would take most of these tests' time.
    """

    folder: Path
    server: Path | None = None

    def copy(self, folder: Path) -> "Workspace":
        """A copy of everything, compiled loops included."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Workspace(folder, self.server)

    def environment(self) -> dict[str, str]:
        environment = dict(os.environ)
        environment["PYTHONPATH"] = str(self.folder)
        environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), environment["PATH"]]
        )
        environment.setdefault("OMP_NUM_THREADS", "1")
        environment["POSSAM_SCALE"] = environment["SCALE"] = "smoke"
        if self.server is not None:
            environment[FORKSERVER_VARIABLE] = str(self.server)
        for role in ("AUTHOR", "COMMITTER"):
            environment |= {f"GIT_{role}_NAME": "test", f"GIT_{role}_EMAIL": "test@localhost"}
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
        """The command line, by the server (which ``possam`` itself asks for long commands only)."""
        if self.server is None:
            return self.run(sys.executable, "-m", "possam", *arguments, check=check)
        return self.run(sys.executable, "-c", COMMAND, str(self.server), *arguments, check=check)

    def commit(self, message: str) -> None:
        """Everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "--message", message)

    def files(self) -> set[Path]:
        """Every file but bytecode, logs and Snakemake's own."""
        skipped = {".snakemake", "__pycache__", "logs"}
        return {
            path
            for path in self.folder.rglob("*")
            if path.is_file() and not skipped & set(path.relative_to(self.folder).parts)
        }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(workspace: Workspace, *command: str, port: int) -> Iterator[str]:
    """A server that ``command`` starts: its address, once it answers; stopped as by Ctrl-C."""
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=workspace.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        yield address
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for a process and all that it started; by force if that does not help."""
    for number in (signal.SIGINT, signal.SIGKILL):
        signal_session(process.pid, number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            continue
        return


def replace(path: Path, old: str, new: str) -> None:
    """Edit a text file: every ``old`` in it, of which there must be one."""
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new))


def copy_project(folder: Path) -> Workspace:
    """A fresh copy without results."""
    # With the compiled loops, but without files that another process is just writing.
    ignored = shutil.ignore_patterns("cache", "tmp", "config.local", "*.pyc*", "*.tmp.*")
    for name in COPIED:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy2(REPOSITORY / name, folder / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    (folder / "tests").symlink_to(REPOSITORY / "tests")
    # make finds the environment that runs the tests, and nothing to install into it.
    for name in ("requirements.lock", "pyproject.toml"):
        os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(sys.prefix)
    # Here smoke stands for mini, whose tables are git's.
    replace(folder / ".gitignore", "/results/smoke/\n", "")
    replace(folder / "dvc.yaml", "mini", "smoke")
    workspace = Workspace(folder)
    workspace.run("git", "init", "--quiet", "--initial-branch", "main")
    workspace.commit("The project")
    return workspace


@contextmanager
def removing_what_is_made(workspace: Workspace) -> Iterator[None]:
    """Runs and evaluations that are new at the end are removed: other tests count them."""
    folders = [workspace.folder / "results/smoke" / kind for kind in ("runs", "evaluations")]
    before = {path for folder in folders for path in folder.iterdir()}
    try:
        yield
    finally:
        for folder in folders:
            for path in set(folder.iterdir()) - before:
                shutil.rmtree(path)


@pytest.fixture(scope="session")
def fork_server() -> Path:
    """A fork server for all copies of the project. It ends with this process."""
    socket_file = start("possam.cli:main")
    deadline = time.monotonic() + 120
    while not socket_file.exists():
        assert time.monotonic() < deadline, "no fork server"
        time.sleep(0.02)
    return socket_file


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str, fork_server: Path
) -> Workspace:
    """The smoke pipeline, run once; tests that edit it put it back as it was.

    Each process of the tests has a copy.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "smoke"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            made = copy_project(tmp_path_factory.mktemp("made") / "project")
            made.snakemake(*TARGETS)
            made.folder.rename(folder)
    return Workspace(folder, fork_server).copy(tmp_path_factory.mktemp("finished") / "project")


def dvc(workspace: Workspace, *arguments: str) -> str:
    """What DVC prints."""
    done = workspace.run("dvc", *arguments)
    return done.stdout + done.stderr


def restore(workspace: Workspace) -> None:
    """Everything as it was committed; Snakemake takes what DVC brought back."""
    workspace.run("git", "restore", ".")
    dvc(workspace, "checkout", "--force", "--quiet")
    workspace.snakemake("-n", TARGETS[0])


@pytest.fixture(scope="session")
def pinned(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A copy of the finished pipeline with one smaller table and its curves, pinned and pushed;
    what DVC said.
    """
    folder = tmp_path_factory.mktemp("dvc") / "project"
    workspace = finished.copy(folder)
    tables = folder / "params/tables.yaml"
    table = yaml.safe_load(tables.read_text())["table1"]
    del table["reference"], table["budget"]
    table["rows"] = [row for row in table["rows"] if row.get("published", True)]
    for row in table["rows"]:
        if row["name"] != "PosSAM (B)":
            row.pop("cells", None)
    tables.write_text(yaml.safe_dump({"table1": table}, sort_keys=False))
    figures = folder / "params/figures.yaml"
    curves = yaml.safe_load(figures.read_text())["training_curves"]
    figures.write_text(yaml.safe_dump({"training_curves": curves}))
    replace(folder / "dvc.yaml", "figures: []", "figures: [training_curves]")
    workspace.commit("Only PosSAM (B)")
    output = dvc(workspace, "repro")
    dvc(workspace, "remote", "add", "--default", "store", "../store")
    workspace.commit("Pinned")
    dvc(workspace, "push")
    return workspace, output
