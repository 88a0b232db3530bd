"""Bars of seen and unseen classes: measured with intervals, and published beside them."""

from collections.abc import Mapping
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from possam.reporting.figures.style import COLOURS, NOTE, add_heading, width_with_title, wrap_note

SUBSETS = {"unseen": COLOURS[5], "seen": COLOURS[0]}
"""Kinds of classes in the order of their bars, with their colours."""

_WIDTH = 0.38


@dataclass(frozen=True, kw_only=True)
class Value:
    """One bar, in percent; ``low`` and ``high`` are None for a published value."""

    value: float
    low: float | None = None
    high: float | None = None


Bars = Mapping[str, Mapping[str, Value]]
"""Method -> subset (a key of :data:`SUBSETS`) -> value."""


def draw_bars(
    measured: Bars,
    published: Bars,
    *,
    title: str,
    subtitle: str,
    labels: tuple[str, str],
    note: str,
) -> Figure:
    """Two axes with one scale: what was measured, and what was published (hatched).

    Args:
        labels: names of the two axes.
    """
    # The name over an axes needs the room of two methods.
    rooms = [max(2, len(bars)) for bars in (measured, published)]
    width = width_with_title(title, 1.6 + 0.85 * sum(rooms))
    foot = wrap_note(note, width=width)
    bottom = 0.2 + 0.14 * (foot.count("\n") + 1)
    height = 3.6 + bottom
    figure = Figure(figsize=(width, height))
    add_heading(figure, title=title, subtitle=subtitle)
    figure.text(0.1 / width, 0.1 / height, foot, fontsize=NOTE, color="0.35", va="bottom")
    grid = figure.add_gridspec(
        1, 2, width_ratios=rooms, wspace=0.08,
        left=0.6 / width, right=1 - 0.15 / width,
        bottom=(bottom + 0.5) / height, top=1 - 1.0 / height,
    )  # fmt: skip
    left = figure.add_subplot(grid[0])
    right = figure.add_subplot(grid[1], sharey=left)
    _draw_axes(left, measured, hatch=None)
    _draw_axes(right, published, hatch="////")
    right.tick_params(axis="y", labelleft=False)
    left.set_title(labels[0], fontsize=9)
    right.set_title(labels[1], fontsize=9)
    left.set_ylabel("PQ in percent")
    values = [
        one for bars in (measured, published) for pair in bars.values() for one in pair.values()
    ]
    left.set_ylim(0, 1.15 * max(max(one.value, one.high or 0.0) for one in values))
    figure.legend(
        *left.get_legend_handles_labels(), ncols=len(SUBSETS), loc="upper right",
        bbox_to_anchor=(1, 1 - 0.5 / height),
    )  # fmt: skip
    return figure


def _draw_axes(axes: Axes, bars: Bars, *, hatch: str | None) -> None:
    for place, (subset, colour) in enumerate(SUBSETS.items()):
        offset = (place - (len(SUBSETS) - 1) / 2) * _WIDTH
        for position, pair in enumerate(bars.values()):
            one = pair[subset]
            axes.bar(
                position + offset, one.value, _WIDTH, color=colour, edgecolor="0.1", linewidth=0.6,
                hatch=hatch, label=f"{subset} classes" if position == 0 else None,
            )  # fmt: skip
            top = one.value
            if one.low is not None and one.high is not None:
                top = max(top, one.high)
                # Not errorbar: it refuses an interval that lies beside its value.
                axes.vlines(position + offset, one.low, one.high, color="0.1", linewidth=1)
                axes.scatter([position + offset] * 2, [one.low, one.high], marker="_", color="0.1")
            axes.annotate(
                f"{one.value:.1f}", (position + offset, top), (0, 2),
                textcoords="offset points", ha="center", va="bottom", fontsize=7,
            )  # fmt: skip
    axes.set_xticks(range(len(bars)), [name.replace(" ", "\n", 1) for name in bars])
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    axes.set_xlim(-0.6, len(bars) - 0.4)
