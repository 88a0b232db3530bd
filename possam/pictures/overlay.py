"""Segments drawn over an image, with numbered marks and a legend beside it.

The colours differ under common colour vision deficiencies; numbers mark classes of one colour.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from possam.datasets.label_runs import segment_table

Colour = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

# Okabe and Ito's set without black, then Tol's "muted" ones that differ from it.
_CODES = (
    *("e69f00", "56b4e9", "009e73", "cc79a7", "f0e442", "0072b2", "d55e00"),
    *("882255", "117733", "ddcc77", "332288", "aa4499"),
)
PALETTE: tuple[Colour, ...] = tuple((r, g, b) for r, g, b in map(bytes.fromhex, _CODES))

INK, PAPER, SHADE = (25, 25, 25), (255, 255, 255), (150, 150, 150)
"""Colours of borders and dark text, of light text, and (in legends) of what no segment covers."""

_SHORTEST, _LONGEST = 640, 2048
_OPACITY = 0.7
_NAME_LENGTH = 28
_SMALLEST_TEXT, _LINE_HEIGHT, _COLUMNS = 14, 1.7, 3


class LegendLine(NamedTuple):
    """A class in the legend; ``number`` is also on its segments."""

    number: str
    colour: Colour
    text: str
    unseen: bool = False


class Spot(NamedTuple):
    """The point of a segment with most room around it; ``radius``: how much, in pixels."""

    x: int
    y: int
    radius: float


def draw_overlay(
    image: NDArray[np.uint8],
    ids: NDArray[np.integer],
    segments: Mapping[int, int],
    names: Sequence[str],
) -> Image.Image:
    """Draw segments over ``image``.

    Args:
        image: RGB (H,W,3) uint8.
        ids: segment ids (H,W); 0, and ids that ``segments`` does not list, belong to no segment.
        segments: segment id -> class index, the place of the class in ``names``; ids without a
            pixel are left out of the legend.

    Returns:
        RGB picture: the image, enlarged or reduced to a longest side of 640 to 2048 pixels, its
        unlabelled parts grey; a number in each larger segment; on the right the legend, the class
        with the largest area first.

    Raises:
        ValueError: shapes differ, or a class index has no name.
    """
    height, width = ids.shape
    if image.shape != (height, width, 3):
        raise ValueError(f"draw_overlay: image {image.shape} and ids {ids.shape} differ in size")
    if any(not 0 <= index < len(names) for index in segments.values()):
        raise ValueError(f"draw_overlay: a segment's class has no name ({len(names)} names)")
    segments = {key: segments[key] for key in segments.keys() & set(np.unique(ids).tolist())}
    pixels, labels = enlarge(image, compact_labels(ids, segments))
    classes = [segments[key] for key in sorted(segments)]  # of labels 1, 2, ...
    area = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    entry_of = {
        index: LegendLine(str(place + 1), PALETTE[place % len(PALETTE)], names[index])
        for place, index in enumerate(largest_first(zip(classes, area[1:].tolist(), strict=True)))
    }
    entries = [entry_of[index] for index in classes]
    picture = Image.fromarray(tint(pixels, labels, [entry.colour for entry in entries]))
    text_size = max(_SMALLEST_TEXT, round(max(picture.size) / 42))
    _draw_numbers(picture, labels, entries, _font(text_size))
    lines = []
    for index, entry in entry_of.items():
        times = f"  \u00d7 {classes.count(index)}" if classes.count(index) > 1 else ""
        lines.append(entry._replace(text=shorten(entry.text) + times))
    if labels.size and (labels == 0).mean() > 0.002:
        lines.append(LegendLine("", SHADE, "no word"))
    lines = lines or [LegendLine("", SHADE, "no segment")]
    legend = _legend(lines, height=picture.height, text_size=text_size)
    height = max(picture.height, legend.height)
    canvas = Image.new("RGB", (picture.width + legend.width, height), PAPER)
    canvas.paste(picture, (0, 0))
    canvas.paste(legend, (picture.width, 0))
    return canvas


def compact_labels(ids: NDArray[np.integer], listed: Collection[int]) -> NDArray[np.int32]:
    """Ids (H,W) as labels 1, 2, ... in ascending order of the listed ids; 0: not listed."""
    known = np.array(sorted(listed), dtype=np.int64)
    if not known.size:
        return np.zeros(ids.shape, np.int32)
    place = np.searchsorted(known, ids).clip(max=known.size - 1)
    return np.where(known[place] == ids, place + 1, 0).astype(np.int32)


def enlarge(
    image: NDArray[np.uint8], labels: NDArray[np.int32]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """RGB (H,W,3) and labels (H,W), resized to a longest side of 640 to 2048 pixels."""
    height, width = labels.shape
    scale = min(max(1.0, _SHORTEST / max(height, width)), _LONGEST / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    rows = np.minimum((np.arange(size[1]) + 0.5) / scale, height - 1).astype(int)
    columns = np.minimum((np.arange(size[0]) + 0.5) / scale, width - 1).astype(int)
    return pixels, labels[rows][:, columns]


def largest_first(areas: Iterable[tuple[int, int]]) -> list[int]:
    """The distinct classes of (class, pixels), the one with most pixels first."""
    total: Counter[int] = Counter()
    for index, pixels in areas:
        total[index] += pixels
    return sorted(total, key=lambda index: (-total[index], index))


def tint(
    pixels: NDArray[np.uint8], labels: NDArray[np.int32], colours: Sequence[Colour]
) -> NDArray[np.uint8]:
    """Colour the segments, grey what belongs to none, and draw the borders (white on dark).

    Args:
        pixels: RGB (H,W,3) uint8; labels: (H,W), 0 for no segment; colours: of labels 1, 2, ...
    """
    table = np.array([SHADE, *colours], dtype=np.float32)
    base = pixels.astype(np.float32)
    grey = base.mean(axis=2, keepdims=True)
    void = (labels == 0)[..., None]
    # Colour times stretched brightness: dark photographs keep structure and the legend's hues.
    low, high = np.percentile(grey, (2, 98))
    light = ((grey - low) / max(float(high - low), 1.0)).clip(0, 1)
    shaded = table[labels] * (0.5 + 0.5 * light)
    tinted = (1 - _OPACITY) * base + _OPACITY * shaded
    result = np.where(void, 0.55 * grey + 0.45 * 235, tinted)
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    line = max(1, round(max(labels.shape) / 640))
    for side, colour in ((2 * line + 1, INK), (2 * line - 1, PAPER)):
        result[_widen(edge, side // 2)] = colour
    return result.round().clip(0, 255).astype(np.uint8)


def roomiest_spots(labels: NDArray[np.int32], count: int) -> list[Spot | None]:
    """Where a mark fits best in the segments 1 to ``count`` of ``labels`` (H,W); None: no pixel."""
    boxes = {key: box for key, _, box in segment_table(labels)}
    places: list[Spot | None] = []
    for number in range(1, count + 1):
        if number not in boxes:
            places.append(None)
            continue
        left, top, width, height = boxes[number]
        step = max(1, max(width, height) // 200)
        part = labels[top : top + height : step, left : left + width : step]
        distance = _distance(np.pad(part == number, 1))
        row, column = np.unravel_index(int(distance.argmax()), distance.shape)
        x, y = left + (int(column) - 1) * step, top + (int(row) - 1) * step
        places.append(Spot(x, y, float(distance[row, column]) * step))
    return places


def _widen(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Every pixel (H,W) within ``by`` rows and columns of one that is set."""
    for _ in range(2):  # down the columns, then (turned) along the rows
        wide = mask.copy()
        for shift in range(1, by + 1):
            wide[shift:] |= mask[:-shift]
            wide[:-shift] |= mask[shift:]
        mask = wide.T
    return mask


def _distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Euclidean distance of each pixel (H,W) that is set to the nearest one that is not.

    By columns first, then over the columns of each row (Saito and Toriwaki 1994), exactly.
    """
    height, width = mask.shape
    column = np.where(mask, height + width, 0)
    for row in range(1, height):
        column[row] = np.minimum(column[row], column[row - 1] + 1)
    for row in range(height - 2, -1, -1):
        column[row] = np.minimum(column[row], column[row + 1] + 1)
    across = (np.arange(width)[:, None] - np.arange(width)) ** 2
    return np.sqrt([(each**2 + across).min(1) for each in column])


def _draw_numbers(
    picture: Image.Image, labels: NDArray[np.int32], entries: Sequence[LegendLine], font: Font
) -> None:
    """Put each segment's number where the segment has most room, if it fits there."""
    draw = ImageDraw.Draw(picture)
    for entry, place in zip(entries, roomiest_spots(labels, len(entries)), strict=True):
        left, top, right, bottom = draw.textbbox((0, 0), entry.number, font=font, anchor="mm")
        if place is None or place.radius < 0.45 * (bottom - top):
            continue
        x, y, margin = place.x, place.y, max(3, (bottom - top) // 3)
        plate = (x + left - margin, y + top - margin, x + right + margin, y + bottom + margin)
        draw.rounded_rectangle(plate, radius=margin, fill=entry.colour, outline=INK, width=2)
        draw.text((x, y), entry.number, fill=contrast(entry.colour), font=font, anchor="mm")


def contrast(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on ``colour``."""
    red, green, blue = colour
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 125 else PAPER


def _legend(lines: Sequence[LegendLine], *, height: int, text_size: int) -> Image.Image:
    """At most three columns; text gets smaller before the legend exceeds ``height``."""
    ruler = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    fewest = math.ceil(len(lines) / _COLUMNS)
    fitting = int(height / (fewest + 1) / _LINE_HEIGHT)
    text_size = max(_SMALLEST_TEXT, min(text_size, fitting))
    font, row, swatch = _font(text_size), round(_LINE_HEIGHT * text_size), 2 * text_size
    gap = max(6, row // 3)
    per_column = max(fewest, (height - 2 * gap) // row)
    columns = [lines[i : i + per_column] for i in range(0, len(lines), per_column)]
    longest = [max(ruler.textlength(line.text, font=font) for line in each) for each in columns]
    widths = [round(length) + swatch + 3 * gap for length in longest]
    size = (sum(widths) + gap, len(columns[0]) * row + 2 * gap)
    legend = Image.new("RGB", size, PAPER)
    draw, x = ImageDraw.Draw(legend), gap
    for column, width in zip(columns, widths, strict=True):
        for index, (number, colour, text, _) in enumerate(column):
            y = gap + index * row
            box = (x, y + 2, x + swatch, y + row - 3)
            draw.rounded_rectangle(box, radius=4, fill=colour, outline=INK, width=1)
            middle, ink = y + row // 2, contrast(colour)
            draw.text((x + swatch // 2, middle), number, fill=ink, font=font, anchor="mm")
            draw.text((x + swatch + gap, middle), text, fill=INK, font=font, anchor="lm")
        x += width
    return legend


def shorten(name: str) -> str:
    """``name``, cut where a legend has no room for more."""
    return name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 3].rstrip() + "..."


def _font(size: int) -> Font:
    """DejaVu Sans where the system has it (it knows more scripts), else the font inside Pillow."""
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default(size)
