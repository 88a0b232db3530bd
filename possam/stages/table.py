"""Stage ``table``: evaluations to CSV, Markdown, TeX and a card; tables printed and compared."""

from pathlib import Path

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write


def make_table(project: Project, name: str, *, out: Path | None = None) -> None:
    """Write ``results/[scale/]<name>.csv`` (or ``out``), ``.md``, ``.tex`` and ``.json``.

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
    build_table(project, name, found, comparisons, out=out or Layout(project).table(name))


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


def print_comparison(project: Project, name: str, before: Path | None, *, out: Path | None) -> None:
    """Print what changed in a table from the checkout ``before`` to this one, as Markdown.

    ``before``: None: judge this checkout's trainings against the kept study. ``out``: also write
    the text here. Errors as of :func:`possam.reporting.checkout_comparison.compare_checkouts` and
    :func:`possam.reporting.kept.judge`.
    """
    from possam.reporting.checkout_comparison import compare_checkouts
    from possam.reporting.kept import judge

    text = judge(project, name) if before is None else compare_checkouts(project, name, before)
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(text)
