"""Part of stage ``table``: the measured rows of a table against each other."""

from collections.abc import Sequence
from dataclasses import asdict
from math import isnan

from possam.evaluation.comparison import load_seeds, paired_differences, rank_agreement
from possam.evaluation.metrics import PER_IMAGE
from possam.evaluation.statistics import Resampled, resample
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.published import read_published
from possam.params.tables import ColumnParams, Origin, TableParams
from possam.reporting.measurement import Comparisons


def compare_rows(project: Project, table: TableParams) -> Comparisons:
    """Paired differences from the reference row, and agreement with the published order.

    The order is that of the reproduced rows: external predictions are no reproduction. Rows are
    paired column by column where both are measured on one benchmark. Only metrics that
    are counted image by image can be resampled; the others have neither.
    """
    resampled = _resample(project, table)
    columns = [column for column in table.columns if column.metric in PER_IMAGE]
    return Comparisons(
        differences=_differences(project, table, columns, resampled),
        agreement=_agreement(project, table, columns, resampled) if table.agreement else {},
    )


def _resample(project: Project, table: TableParams) -> dict[Origin, Resampled]:
    layout, scale = Layout(project), project.scale
    found: dict[Origin, Resampled] = {}
    if table.reference is None and not table.agreement:
        return found
    for row in table.rows:
        for group, cell in row.cells.items():
            shown = {column.metric for column in table.columns if column.group == group}
            if cell.origin in found or not shown & PER_IMAGE:
                continue
            folders = [layout.evaluation(*key) for key in cell.origin.evaluations(scale.seeds)]
            tables = load_seeds(folders, cell.origin.variant, ap="map" in shown)
            found[cell.origin] = resample(*tables, bootstrap=scale.evaluation.bootstrap)
    return found


def _differences(
    project: Project,
    table: TableParams,
    columns: Sequence[ColumnParams],
    resampled: dict[Origin, Resampled],
) -> dict[str, dict[str, dict[str, float]]]:
    confidence = project.scale.evaluation.confidence
    reference = next((row for row in table.rows if row.name == table.reference), None)
    result: dict[str, dict[str, dict[str, float]]] = {}
    if reference is None:
        return result
    for row in table.rows:
        if row is reference:
            continue
        for group, cell in row.cells.items():
            other = reference.cells.get(group)
            if other is None or other.benchmark != cell.benchmark:
                continue
            found = paired_differences(
                resampled[cell.origin], resampled[other.origin], confidence=confidence
            )
            for column in columns:
                difference = found.get(column.metric)
                if column.group != group or difference is None or isnan(difference.value):
                    continue  # external predictions do not give every metric
                result.setdefault(row.name, {})[column.key] = asdict(difference)
    return result


def _agreement(
    project: Project,
    table: TableParams,
    columns: Sequence[ColumnParams],
    resampled: dict[Origin, Resampled],
) -> dict[str, dict[str, float]]:
    published = read_published(project.folder / "published" / table.published, table)
    result = {}
    for column in columns:
        rows = [
            row
            for row in table.rows
            if column.group in row.cells
            and not row.is_external
            and column.key in published[row.name].values
        ]
        found = rank_agreement(
            [published[row.name].values[column.key] for row in rows],
            [resampled[row.cells[column.group].origin] for row in rows],
            column.metric,
            confidence=project.scale.evaluation.confidence,
        )
        if found is not None:
            result[column.key] = asdict(found)
    return result
