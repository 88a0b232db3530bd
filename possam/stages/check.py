"""Stage ``check``: reads and checks every file in ``params/``, and prints what each scale holds."""

from pathlib import Path

from possam.params.data import load_data
from possam.params.figures import load_figures, unserved_figures
from possam.params.plan import load_plan
from possam.params.project import Project
from possam.params.published import read_published
from possam.params.reading import scale_names
from possam.params.slurm import Allocations


def check(scale: str | None) -> None:
    """Load one scale, or all of them, and print what each holds.

    Raises:
        InputError: a file is wrong; the message names file, key and valid choices.
    """
    folder = Path("params")
    scales = [scale] if scale else scale_names(folder)
    Allocations(folder=folder)
    for name in scales:
        project = Project(name, folder=folder)
        load_data(project)
        load_plan(project)
        for table in project.tables.values():
            read_published(folder / "published" / table.published, table)
        print(
            f"{name}: {project.scale.title}: {len(project.runs)} runs, "
            f"{len(project.variants)} variants, {len(project.benchmarks)} benchmarks, "
            f"{len(project.tables)} tables, {len(load_figures(project))} figures, "
            f"{len(project.scale.assets)} assets"
        )
        for lack in (project.unserved | unserved_figures(project)).values():
            print(f"  not at this scale: {lack}")
