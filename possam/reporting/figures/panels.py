"""Rows of pictures: one image per row, with segments over it, numbered legend and counts.

Shapes: H W of an image.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from possam.reporting.figures.style import NOTE, add_heading, width_with_title, wrap_note
from possam.reporting.overlay import (
    INK,
    PALETTE,
    SHADE,
    compact_labels,
    contrast,
    enlarge,
    roomiest_spots,
    shorten,
    tint,
)

Colour = tuple[int, int, int]

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
        area: dict[int, int] = {}
        for panel in self.panels:
            for key, index in panel.segments.items():
                if index is not None and (pixels := int((panel.ids == key).sum())):
                    area[index] = area.get(index, 0) + pixels
        return sorted(area, key=lambda index: (-area[index], index))


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
    legends = [_legend_lines(row) for row in rows]
    heights = [_height(row) for row in rows]
    per_column = [max(1, int((height - _LEGEND_HEAD) / _LINE)) for height in heights]
    legend_columns = max(
        math.ceil(len(lines) / fit) for lines, fit in zip(legends, per_column, strict=True)
    )
    # At most two columns of names; with more names the row becomes higher.
    legend_columns = min(max(1, legend_columns), 2)
    per_column = [
        max(fit, math.ceil(len(lines) / legend_columns))
        for lines, fit in zip(legends, per_column, strict=True)
    ]
    heights = [
        max(height, _LEGEND_HEAD + _LINE * (fit if len(lines) else 0))
        for height, fit, lines in zip(heights, per_column, legends, strict=True)
    ]
    longest = max(
        [24, *(len(row.name) for row in rows), *(len(e[2]) for lines in legends for e in lines)]
    )
    column = _SWATCH + 2 * _GAP + longest * _LETTER
    pictures = (len(columns) + 1) * (_PICTURE + _GAP) + _GAP
    width = width_with_title(title, pictures + legend_columns * column)
    foot = wrap_note(note, width=width)
    bottom = 0.15 + 0.14 * (foot.count("\n") + 1)
    height = _TOP + _TITLES + sum(heights) + (_CAPTION + _GAP) * len(rows) + bottom
    figure = Figure(figsize=(width, height))
    add_heading(figure, title=title, subtitle=subtitle)
    for place, text in enumerate(("image", *columns)):
        x = _GAP + place * (_PICTURE + _GAP) + _PICTURE / 2
        figure.text(x / width, 1 - (_TOP + 0.15) / height, text, ha="center", weight="bold")
    figure.text(0.1 / width, 0.1 / height, foot, fontsize=NOTE, color="0.35", va="bottom")
    top = _TOP + _TITLES
    for row, lines, fit, tall in zip(rows, legends, per_column, heights, strict=True):
        _draw_row(figure, row, lines, fit, top=top, tall=tall, column=column)
        top += tall + _CAPTION + _GAP
    return figure


def _height(row: Row) -> float:
    """Of the row's pictures, in inches."""
    return min(_TALLEST, _PICTURE * row.image.shape[0] / row.image.shape[1])


def _draw_row(
    figure: Figure,
    row: Row,
    lines: Sequence[tuple[str, Colour, str, bool]],
    per_column: int,
    *,
    top: float,
    tall: float,
    column: float,
) -> None:
    width, height = figure.get_size_inches()
    picture = _height(row)

    def add(place: int) -> Axes:
        left = _GAP + place * (_PICTURE + _GAP)
        box = (left / width, 1 - (top + picture) / height, _PICTURE / width, picture / height)
        axes: Axes = figure.add_axes(box)
        axes.set_axis_off()
        return axes

    pixels, _ = enlarge(row.image, np.zeros(row.image.shape[:2], np.int32))
    add(0).imshow(pixels, interpolation="antialiased")
    order = row.classes()
    for place, panel in enumerate(row.panels, start=1):
        axes = add(place)
        _draw_panel(axes, row.image, panel, order)
        axes.text(
            0.5, -0.03, panel.caption, transform=axes.transAxes, ha="center", va="top", fontsize=8
        )
    left = _GAP + (len(row.panels) + 1) * (_PICTURE + _GAP)
    box = (left / width, 1 - (top + tall) / height, 1 - left / width, tall / height)
    legend: Axes = figure.add_axes(box)
    legend.set_xlim(0, width - left)
    legend.set_ylim(tall, 0)
    _draw_legend(legend, row, lines, per_column, width=column)


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


def _unit(colour: Colour) -> tuple[float, float, float]:
    red, green, blue = colour
    return red / 255, green / 255, blue / 255


def _legend_lines(row: Row) -> list[tuple[str, Colour, str, bool]]:
    """(Number, colour, name, unseen) of every class, and a line for what no segment covers."""
    lines = []
    for position, index in enumerate(row.classes()):
        colour, unseen = PALETTE[position % len(PALETTE)], index in row.unseen
        name = shorten(row.names[index]) + (" (unseen)" if unseen else "")
        lines.append((str(position + 1), colour, name, unseen))
    if any(not np.isin(panel.ids, list(panel.segments)).all() for panel in row.panels):
        lines.append(("", SHADE, "no segment", False))
    return lines


def _draw_legend(
    axes: Axes,
    row: Row,
    lines: Sequence[tuple[str, Colour, str, bool]],
    per_column: int,
    *,
    width: float,
) -> None:
    """Fill ``axes``, whose units are inches, with columns of ``width``."""
    axes.set_axis_off()
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
