"""Rows of pictures: one image (H,W) per row, with segments over it, numbered legend and counts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from possam.reporting.figures.style import start_figure
from possam.reporting.overlay import (
    INK,
    PALETTE,
    SHADE,
    Colour,
    compact_labels,
    contrast,
    enlarge,
    largest_first,
    roomiest_spots,
    shorten,
    tint,
)

_PICTURE, _TALLEST = 2.3, 3.4
"""Width of a picture, and the greatest height, in inches."""

_GAP, _CAPTION, _LINE = 0.12, 0.26, 0.185
_TOP, _TITLES = 0.55, 0.24
_SWATCH, _LETTER, _LEGEND_HEAD = 0.24, 0.064, 0.42


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Segments of one image.

    Attributes:
        ids: (H,W) segment ids; 0, and ids that ``segments`` does not list: no segment.
        segments: segment id -> class index, or None for segments without a class.
        caption: the line under the picture.
    """

    ids: NDArray[np.integer]
    segments: Mapping[int, int | None]
    caption: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One image with its panels.

    Attributes:
        image: RGB (H,W,3) uint8.
        name: of the image, over the legend; source: the line below it.
        panels: one per column, after the image itself.
        names: class names by index; unseen: class indices that training did not know.
    """

    image: NDArray[np.uint8]
    name: str
    source: str
    panels: Sequence[Panel]
    names: Mapping[int, str] = field(default_factory=dict)
    unseen: frozenset[int] = frozenset()

    def classes(self) -> list[int]:
        """Every class of the row's panels, those with most pixels first: legend and numbers."""
        return largest_first(
            (index, pixels)
            for panel in self.panels
            for key, index in panel.segments.items()
            if index is not None and (pixels := int((panel.ids == key).sum()))
        )


class _Line(NamedTuple):
    """One line of a row's legend."""

    number: str
    colour: Colour
    name: str
    unseen: bool = False


def draw_panels(
    rows: Sequence[Row], columns: Sequence[str], *, title: str, subtitle: str, note: str
) -> Figure:
    """Draw one row per image: the image, then its panels, then its legend.

    A class has one colour and number within a row. Segments without a class take the colours in
    the order of their ids.

    Args:
        columns: titles of the panels' columns.
        title, subtitle: heading; note: the text at the foot.

    Raises:
        ValueError: the numbers of panels in a row and of columns differ.
    """
    if any(len(row.panels) != len(columns) for row in rows):
        raise ValueError(f"draw_panels: {len(columns)} panels are expected in every row")
    legends, heights = [_legend_lines(row) for row in rows], [_height(row) for row in rows]
    fits = [max(1, int((height - _LEGEND_HEAD) / _LINE)) for height in heights]
    # At most two columns of names; with more names the row becomes higher.
    fewest = max(math.ceil(len(lines) / fit) for lines, fit in zip(legends, fits, strict=True))
    legend_columns = min(max(1, fewest), 2)
    fits = [
        max(fit, math.ceil(len(lines) / legend_columns))
        for lines, fit in zip(legends, fits, strict=True)
    ]
    heights = [
        max(height, _LEGEND_HEAD + _LINE * (fit if lines else 0))
        for height, fit, lines in zip(heights, fits, legends, strict=True)
    ]
    names = [*(row.name for row in rows), *(line.name for lines in legends for line in lines)]
    column = _SWATCH + 2 * _GAP + max(24, *map(len, names)) * _LETTER
    pictures = (len(columns) + 1) * (_PICTURE + _GAP) + _GAP
    tall = _TOP + _TITLES + sum(heights) + (_CAPTION + _GAP) * len(rows)
    wide = pictures + legend_columns * column
    figure, _ = start_figure(wide, tall, title=title, subtitle=subtitle, note=note, margin=0.15)
    width, height = figure.get_size_inches()
    for place, text in enumerate(("image", *columns)):
        x = _GAP + place * (_PICTURE + _GAP) + _PICTURE / 2
        figure.text(x / width, 1 - (_TOP + 0.15) / height, text, ha="center", weight="bold")
    top = _TOP + _TITLES
    for row, lines, fit, tall in zip(rows, legends, fits, heights, strict=True):
        left = _draw_row(figure, row, top)
        legend = _axes(figure, left, top, width - left, tall)
        legend.set(xlim=(0, width - left), ylim=(tall, 0))
        _draw_legend(legend, row, lines, fit, width=column)
        top += tall + _CAPTION + _GAP
    return figure


def _height(row: Row) -> float:
    """Of the row's pictures, in inches."""
    return min(_TALLEST, _PICTURE * row.image.shape[0] / row.image.shape[1])


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes without a frame; where they lie, in inches from the upper left corner."""
    wide, high = figure.get_size_inches()
    box = (left / wide, 1 - (top + height) / high, width / wide, height / high)
    axes: Axes = figure.add_axes(box)
    axes.set_axis_off()
    return axes


def _draw_row(figure: Figure, row: Row, top: float) -> float:
    """Draw the pictures; returns where the legend begins, from the left."""
    height, left, order = _height(row), _GAP, row.classes()
    pixels, _ = enlarge(row.image, np.zeros(row.image.shape[:2], np.int32))
    axes = _axes(figure, left, top, _PICTURE, height)
    axes.imshow(pixels, interpolation="antialiased")
    for place, panel in enumerate(row.panels, start=1):
        left = _GAP + place * (_PICTURE + _GAP)
        axes = _axes(figure, left, top, _PICTURE, height)
        _draw_panel(axes, row.image, panel, order)
        axes.text(
            0.5, -0.03, panel.caption, transform=axes.transAxes, ha="center", va="top", fontsize=8
        )
    return _GAP + (len(row.panels) + 1) * (_PICTURE + _GAP)


def _draw_panel(axes: Axes, image: NDArray[np.uint8], panel: Panel, order: Sequence[int]) -> None:
    keys = sorted(panel.segments)
    pixels, labels = enlarge(image, compact_labels(panel.ids, keys))
    marks = []
    for position, key in enumerate(keys):
        index = panel.segments[key]
        number = position if index is None else order.index(index) if index in order else 0
        marks.append((PALETTE[number % len(PALETTE)], "" if index is None else str(number + 1)))
    picture = tint(pixels, labels, [colour for colour, _ in marks])
    axes.imshow(picture, interpolation="antialiased")
    smallest = 0.02 * max(labels.shape)
    for place, (colour, text) in zip(roomiest_spots(labels, len(keys)), marks, strict=True):
        if text and place is not None and place.radius >= smallest:
            plate = {"boxstyle": "round,pad=0.2", "fc": _unit(colour), "ec": _unit(INK), "lw": 0.6}
            axes.text(
                place.x, place.y, text, ha="center", va="center", fontsize=6.5,
                color=_unit(contrast(colour)), bbox=plate,
            )  # fmt: skip


def _unit(colour: Colour) -> tuple[float, ...]:
    return tuple(value / 255 for value in colour)


def _legend_lines(row: Row) -> list[_Line]:
    """A line of every class, and one for what no segment covers."""
    lines = []
    for position, index in enumerate(row.classes()):
        colour, unseen = PALETTE[position % len(PALETTE)], index in row.unseen
        name = shorten(row.names[index]) + (" (unseen)" if unseen else "")
        lines.append(_Line(str(position + 1), colour, name, unseen))
    if any(not np.isin(panel.ids, list(panel.segments)).all() for panel in row.panels):
        lines.append(_Line("", SHADE, "no segment"))
    return lines


def _draw_legend(
    axes: Axes, row: Row, lines: Sequence[_Line], per_column: int, *, width: float
) -> None:
    """Fill ``axes``, whose units are inches, with columns of ``width``."""
    axes.text(0, 0.02, row.name, weight="bold", va="top", fontsize=8)
    axes.text(0, 0.19, row.source, va="top", fontsize=7, color="0.35")
    for position, (number, colour, name, unseen) in enumerate(lines):
        column, line = divmod(position, per_column)
        x, y = column * width, _LEGEND_HEAD + line * _LINE
        axes.add_patch(
            Rectangle((x, y), _SWATCH, 0.15, facecolor=_unit(colour), edgecolor=_unit(INK), lw=0.6)
        )
        axes.text(
            x + _SWATCH / 2, y + 0.08, number, ha="center", va="center", fontsize=6.5,
            color=_unit(contrast(colour)),
        )  # fmt: skip
        style = "italic" if unseen else "normal"
        axes.text(x + _SWATCH + 0.07, y + 0.08, name, va="center", fontsize=7.5, style=style)
