"""Commands that should answer at once. Nothing else does the same, so there is no ratio."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness import Case
from possam.runtime.errors import InputError

_PRODUCED = {"data", "results", "reports"}
_NEEDED = ("workflow", "params", "data/towers")


def cases() -> Iterator[Case]:
    """Help, the plan of the paper's scale, and a finished table that is asked for again.

    Raises:
        InputError: this is not the repository's root, or a command failed.
    """
    for name in _NEEDED:
        if not Path(name).exists():
            raise InputError(f"{Path(name).absolute()}: missing; run this in the repository's root")
    binaries = Path(sys.executable).parent
    possam, snakemake = str(binaries / "possam"), str(binaries / "snakemake")
    yield _command("pipeline/help", [possam, "--help"], Path("."), 0.3)
    paper = [snakemake, "-n", "--quiet=all", "results/table1.csv"]
    yield _command("pipeline/plan_paper", paper, Path("."), 10.0)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "data").mkdir()
        sources = [path for path in Path(".").iterdir() if not path.name.startswith(".")]
        linked = [path for path in sources if path.name not in _PRODUCED]
        for source in [*linked, Path("data/towers")]:
            (project / source).symlink_to(source.absolute())
        again = [snakemake, "--cores", "2", "results/smoke/table1.csv"]
        _run(again, project)
        yield _command("pipeline/nothing_to_do", again, project, 5.0)


def _command(name: str, command: Sequence[str], folder: Path, seconds: float) -> Case:
    return Case(name=name, ours=lambda: _run(command, folder), target_seconds=seconds)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-500:]}")
