"""The error budget of a table's reference row: its lines as data, as Markdown and as TeX."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from possam.evaluation.comparison import load_seeds, paired_differences
from possam.evaluation.metrics import METRICS
from possam.evaluation.options import GROUND_TRUTH_MASKS, ORACLE_LABELS, PROBES
from possam.evaluation.statistics import Resampled, centred_interval, resample
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import CLOSED_SET, MEASURED, Origin, TableParams

Card = Mapping[str, Any]
Values = Mapping[str, float | None]

BUDGET_METRICS = ("pq", "miou")
LINES = {
    MEASURED: "as measured (open set)",
    GROUND_TRUTH_MASKS: "ground-truth masks, labels of the model",
    ORACLE_LABELS: "masks of the model, oracle labels",
    CLOSED_SET: "closed set (test set of the training domain)",
}
"""Printed names of the lines."""


def compare_budgets(project: Project, table: TableParams) -> dict[str, dict[str, Any]]:
    """What each probe gains, and the share of the closed set's result, by group of columns.

    ``gains``: line -> metric -> ``value``, ``low``, ``high`` in percentage points, paired over
    images. ``ratio``: metric -> ``value``, ``low``, ``high``, open over closed set; the two test
    sets are resampled independently, so that the interval covers the images of both.
    """
    found: dict[Origin, Resampled] = {}
    confidence = project.scale.evaluation.confidence
    result = {}
    for group in table.budget:
        origins = table.budget_of(group)
        for origin in origins.values():
            if origin not in found:
                found[origin] = _resample(project, origin)
        measured, closed = found[origins[MEASURED]], found[origins[CLOSED_SET]]
        gains = {
            probe: {
                name: asdict(difference)
                for name, difference in paired_differences(
                    found[origins[probe]], measured, confidence=confidence
                ).items()
                if name in BUDGET_METRICS
            }
            for probe in PROBES
        }
        ratio = {}
        for name in BUDGET_METRICS:
            if name in measured.points and closed.points.get(name, 0.0) > 0.0:
                value = measured.points[name] / closed.points[name]
                with np.errstate(divide="ignore", invalid="ignore"):
                    drawn = measured.samples[name] / closed.samples[name]
                drawn[~np.isfinite(drawn)] = np.nan
                low, high = centred_interval(drawn, estimate=value, confidence=confidence)
                ratio[name] = {"value": value, "low": low, "high": high}
        result[group] = {"gains": gains, "ratio": ratio}
    return result


def _resample(project: Project, origin: Origin) -> Resampled:
    layout, scale = Layout(project), project.scale
    folders = [layout.evaluation(*key) for key in origin.evaluations(scale.seeds)]
    tables = load_seeds(folders, origin.variant, ap=False)
    return resample(*tables, bootstrap=scale.evaluation.bootstrap)


def budget_card(
    table: TableParams,
    compared: Mapping[str, Mapping[str, Any]],
    find: Callable[[Origin, str], Values | None],
) -> list[dict[str, Any]]:
    """The part of a table's card: for each group its lines, with values, gains and ratio.

    ``find`` gives a metric at an origin (``value``, ``low``, ``high``, ``std``), or None.
    """
    return [
        {
            "group": group,
            "run": origins[MEASURED].run,
            "benchmark": origins[MEASURED].benchmark,
            "closed_set": origins[CLOSED_SET].benchmark,
            "lines": {
                line: {
                    name: value
                    for name in BUDGET_METRICS
                    if (value := find(origin, name)) is not None
                }
                for line, origin in origins.items()
            },
            **compared.get(group, {"gains": {}, "ratio": {}}),
        }
        for group, origins in ((group, table.budget_of(group)) for group in table.budget)
    ]


def budget_rows(card: Card, *, mean: Callable[[Mapping[str, Any]], str]) -> list[list[str]]:
    """Group, line, and value and gain of each metric; ``mean`` prints a value with its interval."""
    rows = []
    for budget in card["budget"]:
        for line, values in budget["lines"].items():
            cells = []
            for name in BUDGET_METRICS:
                cells.append(mean(values[name]) if name in values else "")
                cells.append(_change(budget, line, name))
            rows.append([card["groups"][budget["group"]], LINES[line], *cells])
    return rows


def _change(budget: Mapping[str, Any], line: str, metric: str) -> str:
    """A probe's gain in points; of the closed set, how much of it the open set reaches."""
    if gain := budget["gains"].get(line, {}).get(metric):
        return f"{gain['value']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"
    if line == CLOSED_SET and (ratio := budget["ratio"].get(metric)):
        return f"open/closed {ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    return ""


HEADER: Sequence[str] = (
    *("Direction", "Line"),
    *(text for name in BUDGET_METRICS for text in (METRICS[name], "Against measured")),
)


def budget_text(card: Card) -> str:
    """What the lines are, in a few sentences."""
    return (
        f"What limits *{card['reference']}*: masks, names, or classes that training did not know. "
        "Ground-truth masks are named by the model. Oracle labels: each mask of the model takes "
        "the class of the segment of the ground truth that overlaps it best (IoU). Both are from "
        f"the passes of the row's own evaluation. Brackets: {100 * card['confidence']:g} % "
        "bootstrap over test images; gains are paired, in percentage points."
    )
