"""What all figures share: fonts, colours, heading and files with reproducible bytes."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from possam.params.project import Project
from possam.pictures.overlay import PALETTE
from possam.runtime.files import atomic_write, sha256_file

COLOURS: tuple[tuple[float, float, float], ...] = tuple(
    (red / 255, green / 255, blue / 255) for red, green, blue in PALETTE
)
"""The palette of the overlays as RGB in 0..1; distinct under common colour vision deficiencies."""

LINE_COLOURS = tuple(c for c in COLOURS if 0.299 * c[0] + 0.587 * c[1] + 0.114 * c[2] < 0.75)
"""Those that are dark enough for thin lines on white."""

_NOTE, _DPI = 7.5, 150
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure, the text at its foot, and its part of the card."""

    figure: Figure
    note: str
    facts: dict[str, Any]


def scale_line(project: Project) -> str:
    """The line below a figure's title: its scale, and a warning where the data are synthetic."""
    scale = project.scale
    if scale.synthetic:
        return f"synthetic data and towers; scale {scale.title}; not comparable with the paper"
    return f"scale {scale.title}"


@contextmanager
def house_style() -> Iterator[None]:
    """Draw and save with these settings, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def start_figure(
    width: float, height: float, *, title: str, subtitle: str, note: str, margin: float = 0.2
) -> tuple[Figure, float]:
    """A figure with its heading, which takes the upper 0.5 inches, and the note at its foot.

    Args:
        width: in inches; the figure is wider if the title needs it.
        height: in inches, without the foot.
        margin: above and below the note together, in inches.

    Returns:
        The figure, and the height of its foot in inches.
    """
    width = max(width, 0.3 + 0.1 * len(title))
    note = textwrap.fill(note, width=max(40, int(width * 16.5)))
    foot = margin + 0.14 * (note.count("\n") + 1)
    height += foot
    figure, left, grey = Figure(figsize=(width, height)), 0.1 / width, "0.35"
    figure.text(left, 1 - 0.1 / height, title, fontsize=11, weight="bold", va="top")
    figure.text(left, 1 - 0.32 / height, subtitle, fontsize=_NOTE, color=grey, va="top")
    # The order of drawing is part of a PDF: the note follows all other text of the figure.
    figure.text(
        left, 0.1 / height, note, fontsize=_NOTE, color=grey, va="bottom", zorder=Text.zorder + 0.5
    )
    return figure, foot


def save_figure(figure: Figure, *, png: Path, pdf: Path) -> dict[str, str]:
    """Write both files atomically; the same figure gives the same bytes (no date, no version).

    Returns:
        SHA-256 of each file, by its suffix without the dot.
    """
    unwritten = {"png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer")}
    hashes = {}
    for path in (png, pdf):
        kind = path.suffix[1:]
        with atomic_write(path, "wb") as stream:
            figure.savefig(stream, format=kind, dpi=_DPI, metadata=dict.fromkeys(unwritten[kind]))
        hashes[kind] = sha256_file(path)
    return hashes
