"""Rows of pictures: images (H,W) drawn by lot or given, with segments, numbered legend, counts."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from possam.datasets.format import ConvertedDataset
from possam.model.options import AutomaticMaskOptions
from possam.params.figures import ImagesParams
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pictures.overlay import (
    INK,
    PALETTE,
    SHADE,
    Colour,
    LegendLine,
    compact_labels,
    contrast,
    enlarge,
    largest_first,
    roomiest_spots,
    shorten,
    tint,
)
from possam.reporting.figures.style import start_figure
from possam.runtime.errors import InputError

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


def draw_panels(
    rows: Sequence[Row], columns: Sequence[str], *, title: str, subtitle: str, note: str
) -> Figure:
    """Draw one row per image: the image, then its panels, then its legend.

    A class has one colour and number within a row. Segments without a class take the colours in
    the order of their ids.

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
    names = [*(row.name for row in rows), *(line.text for lines in legends for line in lines)]
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
    order = row.classes()
    pixels, _ = enlarge(row.image, np.zeros(row.image.shape[:2], np.int32))
    axes = _axes(figure, _GAP, top, _PICTURE, _height(row))
    axes.imshow(pixels, interpolation="antialiased")
    for place, panel in enumerate(row.panels, start=1):
        axes = _axes(figure, _GAP + place * (_PICTURE + _GAP), top, _PICTURE, _height(row))
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


def _legend_lines(row: Row) -> list[LegendLine]:
    """A line of every class, and one for what no segment covers."""
    lines = []
    for position, index in enumerate(row.classes()):
        colour, unseen = PALETTE[position % len(PALETTE)], index in row.unseen
        name = shorten(row.names[index]) + (" (unseen)" if unseen else "")
        lines.append(LegendLine(str(position + 1), colour, name, unseen))
    if any(not np.isin(panel.ids, list(panel.segments)).all() for panel in row.panels):
        lines.append(LegendLine("", SHADE, "no segment"))
    return lines


def _draw_legend(
    axes: Axes, row: Row, lines: Sequence[LegendLine], per_column: int, *, width: float
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


@dataclass(kw_only=True)
class Pictures:
    """What a figure of images shows, and where it is from.

    Attributes:
        rows: one per image; columns: titles of their panels.
        note: how it was made, for readers; facts: for machines, a part of the card.
    """

    rows: list[Row]
    columns: list[str]
    note: str
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """Images of one benchmark, drawn by lot; ``unseen``: class indices that training did not know.

    Attributes:
        positions: of the images in ``dataset``, ascending.
        kind: ``synthetic `` at a synthetic scale, else empty; stands before the data set's name.
    """

    benchmark: str
    dataset: ConvertedDataset
    positions: list[int]
    kind: str
    unseen: frozenset[int] = frozenset()

    def truth(self, position: int) -> Panel:
        """The ground truth's segments without crowd regions."""
        found = self.dataset.images[position].segments
        segments = {segment.id: segment.category for segment in found if not segment.is_crowd}
        return panel(self.dataset.panoptic(position), segments, "segment")


def panel(ids: NDArray[np.integer], segments: dict[int, Any], what: str) -> Panel:
    """A panel whose caption counts the segments, each a ``what``."""
    count = len(segments)
    return Panel(ids=ids, segments=segments, caption=f"{count} {what}{'' if count == 1 else 's'}")


def draw_lots(project: Project, params: ImagesParams, benchmark: str) -> DrawnImages:
    """``params.images`` of the benchmark's images, each equally likely, in the data set's order.

    Raises:
        InputError: the benchmark has fewer images.
    """
    test = project.benchmarks[benchmark]
    dataset = ConvertedDataset.open(Layout(project).dataset(test.dataset, test.split))
    if len(dataset) < params.images:
        raise InputError(
            f"{project.folder / 'figures.yaml'}: images: {params.images} were asked for, but "
            f"benchmark {benchmark!r} has {len(dataset)} at scale {project.name}; lower the number"
        )
    generator = np.random.default_rng(params.seed)
    chosen = np.sort(generator.choice(len(dataset), size=params.images, replace=False)).tolist()
    kind = "synthetic " if project.scale.synthetic else ""
    return DrawnImages(benchmark=benchmark, dataset=dataset, positions=chosen, kind=kind)


def collect(
    params: ImagesParams,
    lots: Sequence[DrawnImages],
    columns: Sequence[str],
    make: Callable[[DrawnImages, int], list[Panel]],
    *,
    note: str,
    facts: dict[str, Any],
) -> Pictures:
    """All rows, with the panels that ``make`` gives, and how the images were chosen."""
    rows, entries = [], []
    for drawn in lots:
        for position in drawn.positions:
            record, panels = drawn.dataset.images[position], make(drawn, position)
            rows.append(
                Row(
                    image=drawn.dataset.image(position),
                    name=record.file.stem,
                    source=f"{drawn.kind}{drawn.dataset.name}, {drawn.dataset.split}",
                    panels=panels,
                    names={each.index: each.names[0] for each in drawn.dataset.categories},
                    unseen=drawn.unseen,
                )
            )
            entries.append(
                {
                    "benchmark": drawn.benchmark,
                    "id": record.id,
                    "file": record.file.name,
                    "position": position,
                    "panels": {k: p.caption for k, p in zip(columns, panels, strict=True)},
                }
            )
    lot = ", ".join(f"{params.images} of the {len(d.dataset)} of {d.benchmark}" for d in lots)
    rule = f"Images drawn by lot with seed {params.seed}: {lot}."
    return Pictures(
        rows=rows,
        columns=list(columns),
        note=f"{rule} {note} Crowd regions of the ground truth are shown as no segment.",
        facts={
            "images": entries,
            "image_rule": rule,
            "image_seed": params.seed,
            "segments": {
                name: sum(len(row.panels[column].segments) for row in rows)
                for column, name in enumerate(columns)
            },
            "datasets": {d.benchmark: d.dataset.manifest["content"] for d in lots},
            **facts,
        },
    )


def masks_panel(masks: NDArray[np.bool_]) -> Panel:
    """Masks (M,H,W) of an image, later ones over earlier ones."""
    ids = np.zeros(masks.shape[1:], dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    return panel(ids, dict.fromkeys(range(1, len(masks) + 1)), "mask")


def masks_note(settings: AutomaticMaskOptions) -> str:
    """How SAM's automatic masks were made."""
    side = settings.points_per_side
    return (
        f"SAM's automatic masks: {side} x {side} points as prompts, predicted IoU above "
        f"{settings.iou_threshold:g}, stability at least {settings.stability_threshold:g}, "
        f"non-maximum suppression of boxes at IoU {settings.nms_threshold:g}. They have no "
        "classes; smaller ones are drawn over larger ones."
    )


def clusters_note(clusters: int, seed: int) -> str:
    """How features were clustered."""
    return (
        f"Clusters: k-means with k = {clusters} (seed {seed}) over each image's own features, "
        "brought to unit norm; a pixel takes the centre nearest to its interpolated feature."
    )
