"""``possam runs``: trainings that were set aside because their identity changed."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from possam.assets.inventory import gigabytes
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.reading import scale_names
from possam.runtime.errors import InputError
from possam.runtime.files import remove_leftovers
from possam.stages.train import only_one
from possam.training.checkpoint_paths import finished_steps
from possam.training.run_files import RunFiles


def manage_runs(action: str, folders: Sequence[Path], *, scale: str | None) -> None:
    """``list`` the runs that were set aside, or ``restore`` or ``remove`` those in ``folders``.

    A run that takes the place of another one when it is restored sets it aside.

    Args:
        scale: only runs of this scale; None: of all.

    Raises:
        InputError: a folder is none of a run that was set aside, or the run is being trained.
    """
    if (action == "list") != (not folders):
        raise InputError("restore and remove take folders that list prints; list takes none")
    found = {
        files.directory: (run, files)
        for name in ([scale] if scale else scale_names())
        for run, files in _set_aside(Layout(Project(name)))
    }
    if action == "list":
        _list([files for _, files in found.values()])
        return
    if strange := [folder for folder in folders if folder not in found]:
        raise InputError(
            f"{strange[0]}: no run was set aside there; possam runs list prints the folders"
        )
    for folder in folders:
        run, files = found[folder]
        if action == "remove":
            # If this is killed before rmtree ends, the next call finds the name.
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old.tmp")))
            print(f"{folder}: removed")
        else:
            with only_one(run.directory):
                run.take_back(files)
            print(f"{folder}: restored to {run.directory}")


def _set_aside(layout: Layout) -> Iterator[tuple[RunFiles, RunFiles]]:
    """(The run's own folder, a folder that it was set aside in) of all of a scale's runs."""
    # Of any run: its entry in params/runs.yaml may be gone.
    for superseded in sorted(layout.superseded("*", 0).parents[1].glob("*/seed*")):
        remove_leftovers(superseded)
        name, seed = superseded.parent.name, int(superseded.name.removeprefix("seed"))
        run = RunFiles(layout.run(name, seed), superseded=superseded)
        yield from ((run, files) for files in run.others())


def set_aside_bytes(layout: Layout) -> int:
    """Disk space of a scale's runs that were set aside."""
    return sum(_bytes(files) for _, files in _set_aside(layout))


def _bytes(files: RunFiles) -> int:
    return sum(path.stat().st_size for path in files.directory.rglob("*") if path.is_file())


def _list(found: Sequence[RunFiles]) -> None:
    if not found:
        print("no run was set aside")
        return
    rows = [("folder", "state", "device", "size", "commit")]
    for files in found:
        held, state = files.held(), "finished"
        if not files.is_finished:
            state = f"step {finished_steps(files.checkpoints)}"
        commit, device = held["git"]["commit"][:10], held["identity"].get("device", "-")
        rows.append((str(files.directory), state, device, gigabytes(_bytes(files)), commit))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
