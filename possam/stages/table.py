"""Stage ``table``: evaluations to CSV, Markdown and a provenance card."""

from possam.errors import InputError
from possam.files import read_json
from possam.layout import Layout
from possam.params import CellParams, Project, TableParams

Cell = tuple[str, str, str]
"""Run, benchmark, condition."""


def table_params(project: Project, name: str) -> TableParams:
    """The table's parameters.

    Raises:
        InputError: no such table.
    """
    if name not in project.tables:
        raise InputError(
            f"{project.folder / 'tables.yaml'}: unknown table {name!r}; "
            f"valid choices: {', '.join(project.tables)}"
        )
    return project.tables[name]


def table_cells(table: TableParams) -> list[Cell]:
    """Every (run, benchmark, condition) that the table and its controls show, once each."""
    cells: dict[Cell, None] = {}
    for row in table.rows:
        for cell in row.cells.values():
            cells[_key(cell)] = None
    for control in table.controls:
        cells[control.run, control.benchmark, control.condition] = None
    return list(cells)


def _key(cell: CellParams) -> Cell:
    return cell.run, cell.benchmark, "trained"


def make_table(project: Project, name: str) -> None:
    """Write ``results/[scale/]<name>.csv``, ``.md`` and ``.json``."""
    from possam.reporting.tables import build_table

    layout = Layout(project)
    evaluations = {
        cell: read_json(layout.evaluation(*cell) / "evaluation.json")
        for cell in table_cells(table_params(project, name))
    }
    csv, md, card = layout.table(name)
    build_table(project, name, evaluations, out_csv=csv, out_md=md, out_json=card)


def show_table(project: Project, name: str) -> None:
    """Print a finished table."""
    from possam.reporting.tables import print_table

    table_params(project, name)
    csv = Layout(project).table(name)[0]
    if not csv.is_file():
        raise InputError(f"{csv}: no such table yet; make it: snakemake {csv}")
    print_table(csv)
