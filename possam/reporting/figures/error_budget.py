"""The error budgets of tables' reference rows, as bars: what limits a result."""

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes

from possam.params.figures import ErrorBudgetParams
from possam.params.project import Project
from possam.params.tables import Origin
from possam.reporting.error_budget import BUDGET_METRICS, LINES
from possam.reporting.figures.style import COLOURS, Drawing, scale_line, start_figure
from possam.reporting.measurement import measure
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json

Budgets = Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]]
"""Printed name of a row and its direction -> line -> metric -> ``value``, ``low``, ``high``."""

_COLOURS = dict(zip(LINES, (COLOURS[0], COLOURS[5], COLOURS[1], COLOURS[2]), strict=True))
_TITLES = {"pq": "PQ", "miou": "mIoU"}
_WIDTH = 0.2


def error_budget(project: Project, params: ErrorBudgetParams) -> Drawing:
    """Draw the figure from this scale's evaluations.

    Raises:
        InputError: an evaluation is missing.
    """
    budgets: dict[str, dict[str, dict[str, Any]]] = {}
    used = dict[Origin, list[str]]()
    for name in params.tables:
        table = project.tables[name]
        for group in table.budget:
            shown = budgets.setdefault(f"{table.reference}\n{table.groups[group]}", {})
            for line, origin in table.budget_of(group).items():
                found = measure(project, origin)
                if found is None:
                    raise InputError(
                        f"{name}: run {origin.run!r} on {origin.benchmark!r}: no evaluation with "
                        f"{origin.variant!r} at scale {project.name}; make the table: "
                        f"snakemake results/{project.prefix}{name}.csv"
                    )
                used[origin] = [hash_json(one) for one in found.evaluations]
                values = {metric: found.get(metric) for metric in BUDGET_METRICS}
                shown[line] = {key: value for key, value in values.items() if value is not None}
    note = _note(project)
    return Drawing(
        figure=draw_budgets(
            budgets, title=params.title, subtitle=scale_line(project), note=note
        ),
        note=note,
        facts={
            "seeds": list(project.scale.seeds),
            "budgets": budgets,
            "evaluations": [
                {**origin._asdict(), "content_hash": hashes} for origin, hashes in used.items()
            ],
        },
    )  # fmt: skip


def _note(project: Project) -> str:
    seeds = ", ".join(map(str, project.scale.seeds))
    return (
        "What limits a row: masks (those of the ground truth in place of the model's), names (each "
        "mask of the model with the class of the segment that it overlaps best), or the change of "
        "domain and classes (the test set of the training domain). Whiskers: "
        f"{100 * project.scale.evaluation.confidence:g} % bootstrap intervals over images. "
        f"Training seeds: {seeds}."
    )


def draw_budgets(budgets: Budgets, *, title: str, subtitle: str, note: str) -> Any:
    """One axes per metric; a group of four bars per row and direction."""
    width = 2.4 + 1.9 * len(budgets)
    figure, foot = start_figure(width, 5.6, title=title, subtitle=subtitle, note=note)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        len(BUDGET_METRICS), 1, hspace=0.3,
        left=0.6 / width, right=1 - 0.15 / width,
        bottom=(foot + 0.5) / height, top=1 - 1.25 / height,
    )  # fmt: skip
    first = None
    for place, metric in enumerate(BUDGET_METRICS):
        axes = figure.add_subplot(grid[place], sharex=first)
        _draw_axes(axes, budgets, metric)
        if first is None:
            first = axes
            axes.tick_params(axis="x", labelbottom=False)
    assert first is not None
    figure.legend(
        *first.get_legend_handles_labels(), ncols=2, loc="upper left",
        bbox_to_anchor=(0.4 / width, 1 - 0.5 / height),
    )  # fmt: skip
    return figure


def _draw_axes(axes: Axes, budgets: Budgets, metric: str) -> None:
    axes.set_ylabel(f"{_TITLES[metric]} in percent")
    for place, (line, title) in enumerate(LINES.items()):
        offset = (place - (len(LINES) - 1) / 2) * _WIDTH
        drawn = False
        for position, lines in enumerate(budgets.values()):
            one = lines.get(line, {}).get(metric)
            if one is None or one["value"] is None:
                continue
            value, low, high = one["value"], one["low"], one["high"]
            axes.bar(
                position + offset, value, _WIDTH, color=_COLOURS[line], edgecolor="0.1",
                linewidth=0.6, label=None if drawn else title,
            )  # fmt: skip
            drawn, top = True, value
            if low is not None and high is not None:
                top = max(value, high)
                axes.vlines(position + offset, low, high, color="0.1", linewidth=1)
                axes.scatter([position + offset] * 2, [low, high], marker="_", color="0.1", s=16)
            axes.annotate(
                f"{value:.1f}", (position + offset, top), (0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=7,
            )  # fmt: skip
    axes.set_xticks(range(len(budgets)), list(budgets))
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.55, len(budgets) - 0.45)
    axes.set_ylim(0, 112)
