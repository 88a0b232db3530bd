"""What table cells show: inference variants of evaluations, over seeds and against each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from possam.evaluation.comparison import (
    average_seeds,
    load_seeds,
    paired_differences,
    rank_agreement,
)
from possam.evaluation.metrics import PER_IMAGE
from possam.evaluation.statistics import Resampled, resample
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.published import read_published
from possam.params.tables import Origin, TableParams
from possam.reporting.error_budget import compare_budgets
from possam.runtime.files import read_json

Numbers = dict[str, dict[str, float]]
Resamples = Mapping[Origin, Resampled]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Metrics in percent, with the evaluations that they are from.

    Attributes:
        evaluations: contents of ``evaluation.json``, one per seed.
        metrics: the value, or the mean over several seeds; None where it is undefined.
        std: the standard deviation over the seeds (``ddof`` 1); empty with one seed.
        intervals: low and high end of the value's interval, by a bootstrap over images.
    """

    variant: str
    evaluations: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, float | None]
    std: Mapping[str, float | None] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float] | None]

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], variant: str) -> "Measurement":
        """The measurement of a single evaluation."""
        found = evaluation["variants"][variant]
        return cls(
            variant=variant,
            evaluations=(evaluation,),
            metrics=found["metrics"],
            intervals=found["intervals"],
        )

    def get(self, metric: str) -> dict[str, float | None] | None:
        """``value``, ``low``, ``high``, ``std`` (None with one seed); None if undefined."""
        value, bounds = self.metrics.get(metric), self.intervals.get(metric)
        if value is None or bounds is None or not math.isfinite(value):
            return None
        low, high = bounds
        return {"value": value, "low": low, "high": high, "std": self.std.get(metric)}

    def parts(self) -> list[Mapping[str, Any]]:
        """The variant's part of each evaluation: metrics, check, protocol."""
        return [evaluation["variants"][self.variant] for evaluation in self.evaluations]


def measure(project: Project, origin: Origin) -> Measurement | None:
    """What was measured at ``origin``; None if an evaluation or the variant is missing."""
    layout, variant = Layout(project), origin.variant
    folders = [layout.evaluation(*key) for key in origin.evaluations(project.scale.seeds)]
    files = [folder / "evaluation.json" for folder in folders]
    if not all(file.is_file() for file in files):
        return None
    evaluations = tuple(read_json(file) for file in files)
    if any(variant not in evaluation["variants"] for evaluation in evaluations):
        return None
    if len(evaluations) == 1:
        return Measurement.of(evaluations[0], variant)
    average = average_seeds(folders, variant, bootstrap=project.scale.evaluation.bootstrap)
    return Measurement(
        variant=variant,
        evaluations=evaluations,
        metrics=average.mean,
        std=average.std,
        intervals=average.intervals,
    )


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """How the rows of a table compare with each other.

    Attributes:
        differences: row -> column key -> ``value``, ``low``, ``high``: the row minus the table's
            reference row in percentage points, paired over images, with its interval.
        agreement: column key -> ``tau``, ``low``, ``high``, ``rows``: Kendall's tau of the
            published order of the reproduced rows and ours.
        budget: group of columns -> the result of
            :func:`possam.reporting.error_budget.compare_budgets`.
    """

    differences: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)
    agreement: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    budget: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def compare_rows(project: Project, table: TableParams) -> Comparisons:
    """Paired differences from the reference row, and agreement with the published order.

    Rows are paired column by column where both are measured on one benchmark. External predictions
    are left out of the order. Only metrics that are counted image by image can be resampled.
    """
    if table.reference is None and not table.agreement:
        return Comparisons()
    resampled = _resample(project, table)
    return Comparisons(
        differences=_differences(project, table, resampled),
        agreement=_agreement(project, table, resampled) if table.agreement else {},
        budget=compare_budgets(project, table),
    )


def _resample(project: Project, table: TableParams) -> Resamples:
    layout, scale = Layout(project), project.scale
    found: dict[Origin, Resampled] = {}
    for row in table.rows:
        for group, cell in row.cells.items():
            shown = {column.metric for column in table.columns if column.group == group}
            if cell.origin not in found and shown & PER_IMAGE:
                folders = [layout.evaluation(*key) for key in cell.origin.evaluations(scale.seeds)]
                tables = load_seeds(folders, cell.origin.variant, ap="map" in shown)
                found[cell.origin] = resample(*tables, bootstrap=scale.evaluation.bootstrap)
    return found


def _differences(project: Project, table: TableParams, resampled: Resamples) -> dict[str, Numbers]:
    confidence = project.scale.evaluation.confidence
    cells = {row.name: row.cells for row in table.rows}
    reference = cells.pop(table.reference, {}) if table.reference else {}
    result: dict[str, Numbers] = {}
    for name, groups in cells.items():
        for group, cell in groups.items():
            other = reference.get(group)
            if other is None or other.benchmark != cell.benchmark or cell.origin not in resampled:
                continue
            found = paired_differences(
                resampled[cell.origin], resampled[other.origin], confidence=confidence
            )
            for column in table.columns:
                if column.group == group and column.metric in found.keys() & PER_IMAGE:
                    difference = asdict(found[column.metric])
                    if not math.isnan(difference["value"]):  # external predictions lack some
                        result.setdefault(name, {})[column.key] = difference
    return result


def _agreement(project: Project, table: TableParams, resampled: Resamples) -> Numbers:
    published = read_published(project.folder / "published" / table.published, table)
    result = {}
    for column in table.columns:
        if column.metric not in PER_IMAGE:
            continue
        rows = [
            row
            for row in table.rows
            if column.group in row.cells
            and row.source == "reproduced"
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
