"""Draw curves: one column per quantity, time above memory, all axes logarithmic."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from possam.reporting.figures.style import LINE_COLOURS, house_style
from possam.runtime.files import atomic_write

_COSTS = {"median_s": "time of a call (s)", "peak_memory_mib": "peak memory of a call (MiB)"}
_SIDES = {"ours": ("o", "-"), "theirs": ("s", "--")}
_COLUMN, _ROW = 3.4, 2.9
"""Size of a panel with its labels, inches."""

_DPI = 130
_CLOSEST = 0.15
"""Labels of ticks closer than this share of the axis would overlap."""


def draw_scaling(curves: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw measured curves (what :func:`benchmarks.harness.measure_curve` returns).

    Marks are medians with the smallest and largest value, thin lines are the fitted power laws; the
    reference, if there is one, is dashed.
    """
    quantities = list(dict.fromkeys(curve["quantity"] for curve in curves))
    with house_style():
        figure = Figure(figsize=(_COLUMN * len(quantities), _ROW * len(_COSTS)))
        grid = figure.subplots(len(_COSTS), len(quantities), squeeze=False)
        for column, quantity in enumerate(quantities):
            members = [curve for curve in curves if curve["quantity"] == quantity]
            for row, (cost, label) in enumerate(_COSTS.items()):
                axes = grid[row, column]
                _draw_panel(axes, members, cost)
                axes.set_ylabel(label)
            axes.set_xlabel(quantity)
        figure.tight_layout()
    return figure


def save_plot(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically; the same figure gives the same bytes."""
    with house_style(), atomic_write(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})


def _draw_panel(axes: Axes, curves: Sequence[Mapping[str, Any]], cost: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for number, curve in enumerate(curves):
        for side, (marker, line) in _SIDES.items():
            colour = LINE_COLOURS[number % len(LINE_COLOURS)] if side == "ours" else "0.35"
            _draw_side(axes, curve, side, cost, colour=colour, marker=marker, line=line)
    sizes = sorted({point["size"] for curve in curves for point in curve["points"]})
    axes.set_xlim(sizes[0] / 1.2, sizes[-1] * 1.2)
    axes.xaxis.set_major_locator(FixedLocator(_apart(sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    low, high = axes.get_ylim()
    # At least two decades, so that what does not grow looks flat.
    middle, half = math.sqrt(low * high), max(10.0, math.sqrt(high / low))
    # Space for the legend above.
    axes.set_ylim(middle / half, middle * half * (high / low) ** 0.35 * 3)
    axes.yaxis.set_major_locator(LogLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if axes.get_legend_handles_labels()[1]:
        axes.legend(
            loc="upper left", borderaxespad=0.1, handlelength=1.4, alignment="left",
            title="exponent ± standard error (* no power law)", fontsize=7.5, title_fontsize=7.5,
        )  # fmt: skip


def _draw_side(
    axes: Axes,
    curve: Mapping[str, Any],
    side: str,
    cost: str,
    *,
    colour: Any,
    marker: str,
    line: str,
) -> None:
    known = [p for p in curve["points"] if p[side] is not None and (p[side][cost] or 0) > 0]
    if not known:
        return
    sizes = [point["size"] for point in known]
    costs = [point[side][cost] for point in known]
    law = curve["fits"][side][cost]
    name = curve["name"].partition("/")[2].replace("_", " ") if side == "ours" else "reference"
    label = name
    if law is not None:
        fitted = [law["factor"] * size ** law["exponent"] for size in sizes]
        axes.plot(sizes, fitted, color=colour, linestyle=line, linewidth=1)
        label += f": {round(law['exponent'], 2) + 0.0:.2f} ± {law['error']:.2f}"  # no minus zero
        label += "" if law["holds"] else " *"
    axes.plot(
        sizes, costs, color=colour, linestyle="none", marker=marker, markersize=4.5, label=label
    )
    if cost == "median_s":
        low, high = ([point[side][key] for point in known] for key in ("low_s", "high_s"))
        axes.vlines(sizes, low, high, color=colour, linewidth=1.2)


def _apart(sizes: Sequence[int]) -> list[int]:
    """The sizes whose labels do not overlap; of two that would, the larger is kept."""
    span = math.log(sizes[-1] / sizes[0])
    kept = [sizes[-1]]
    for size in reversed(sizes[:-1]):
        if math.log(kept[-1] / size) > _CLOSEST * span:
            kept.append(size)
    return kept[::-1]
