"""Stage ``table``: evaluations to CSV, Markdown, TeX and a provenance card."""

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError


def make_table(project: Project, name: str) -> None:
    """Write ``results/[scale/]<name>.csv``, ``.md``, ``.tex`` and ``.json``.

    Raises:
        InputError: no such table, or something that it shows was not evaluated.
    """
    from possam.reporting.measurement import Comparisons, compare_rows, measure
    from possam.reporting.tables import build_table

    table = project.table(name)
    origins = table.origins()
    found = {origin: measured for origin in origins if (measured := measure(project, origin))}
    complete = len(found) == len(origins)  # if not, build_table says what is missing
    comparisons = compare_rows(project, table) if complete else Comparisons()
    build_table(project, name, found, comparisons, out=Layout(project).table(name))


def show_table(project: Project, name: str) -> None:
    """Print a finished table.

    Raises:
        InputError: no such table, or it was not made yet.
    """
    from possam.reporting.tables import print_table

    project.table(name)
    csv = Layout(project).table(name)
    if not csv.is_file():
        raise InputError(f"{csv}: no such table yet; make it: snakemake {csv}")
    print_table(csv)
