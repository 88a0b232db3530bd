"""Commands that should answer at once. Nothing else does the same: they have seconds, no ratio."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Case
from possam.runtime.errors import InputError

_COPIED = ("params", "workflow", "data/towers", "possam")


def cases() -> Iterator[Case]:
    """Help, the plan of the paper's scale, and a finished table asked for again.

    Raises:
        InputError: not called in the repository, or a command failed.
    """
    binaries = Path(sys.executable).parent
    possam, snakemake = str(binaries / "possam"), str(binaries / "snakemake")
    yield _command("pipeline/help", [possam, "--help"], Path("."), 0.3)
    paper = [snakemake, "-n", "--quiet=all", "results/table1.csv"]
    yield _command("pipeline/plan_paper", paper, Path("."), 10.0)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        for name in _COPIED:
            source = Path(name).absolute()
            if not source.exists():
                raise InputError(f"{source}: missing; run possam bench in the repository")
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            (project / name).symlink_to(source)
        again = [snakemake, "--cores", "2", "results/smoke/table1.csv"]
        _run(again, project)
        yield _command("pipeline/nothing_to_do", again, project, 5.0)


def _command(name: str, command: Sequence[str], folder: Path, seconds: float) -> Case:
    return Case(name=name, ours=lambda: _run(command, folder), target_seconds=seconds)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
