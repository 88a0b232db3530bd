"""Losses over the iterations of several runs: the total, and each term."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from possam.reporting.figures.style import LINE_COLOURS, start_figure
from possam.runtime.errors import InputError
from possam.runtime.reading import reading

TERMS: Mapping[str, str] = {
    "loss": "total (weighted sum)",
    "class": "class: cross-entropy",
    "bce": "mask: binary cross-entropy",
    "dice": "mask: dice",
    "iou": "predicted IoU: squared error",
}
"""Logged values that are drawn, with their titles."""

_STYLES = ("-", "--", ":", "-.")
_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training; ``steps`` in iterations, ``values`` by the keys of :data:`TERMS`."""

    run: str
    seed: int
    steps: Sequence[int]
    values: Mapping[str, Sequence[float | None]]


def read_curve(path: Path, *, run: str, seed: int) -> Curve:
    """The curve of one ``metrics.jsonl``.

    Raises:
        InputError: no such file, no lines, or a line without one of the values.
    """
    try:
        with reading(path, missing="train the run again"):
            text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, not UTF-8 text ({error})") from error
    values: dict[str, list[Any]] = {key: [] for key in ("step", *TERMS)}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            entry = json.loads(line)
            for key, column in values.items():
                column.append(entry[key])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: line {number}: not a line of metrics ({error})") from error
    if not values["step"]:
        raise InputError(f"{path}: holds no step; train the run again")
    return Curve(run=run, seed=seed, steps=values.pop("step"), values=values)


def draw_curves(curves: Sequence[Curve], *, title: str, subtitle: str, note: str) -> Figure:
    """One panel per term, one line per training; runs differ in colour, then in line style."""
    rows = -(-(len(TERMS) + 1) // _COLUMNS)
    figure, foot = start_figure(9.6, 0.6 + 2.5 * rows, title=title, subtitle=subtitle, note=note)
    width, height = figure.get_size_inches()
    grid = figure.add_gridspec(
        rows, _COLUMNS, wspace=0.25, hspace=0.45, left=0.55 / width, right=1 - 0.15 / width,
        bottom=(foot + 0.45) / height, top=1 - 0.85 / height,
    )  # fmt: skip
    runs = list(dict.fromkeys(curve.run for curve in curves))
    for place, (term, name) in enumerate(TERMS.items()):
        axes = figure.add_subplot(grid[place // _COLUMNS, place % _COLUMNS])
        for curve in curves:
            number = runs.index(curve.run)
            axes.plot(
                curve.steps,
                [float("nan") if value is None else value for value in curve.values[term]],
                color=LINE_COLOURS[number % len(LINE_COLOURS)],
                linestyle=_STYLES[number // len(LINE_COLOURS) % len(_STYLES)],
                linewidth=1.2,
                marker="o" if len(curve.steps) == 1 else None,
                label=curve.run,
            )
        axes.set_title(name, fontsize=8.5)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("iteration")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0)
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    corner = figure.add_subplot(grid[len(TERMS) // _COLUMNS, len(TERMS) % _COLUMNS])
    corner.set_axis_off()
    corner.legend(unique.values(), unique.keys(), loc="center left", title="run", fontsize=8)
    return figure
