"""Measurements on disk: ``reports/bench/<benchmark>.json`` grows, ``reports/bench.md`` shows.

Curves are drawn beside the JSON, in ``reports/bench/<benchmark>.png``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import Newest, case_lines, curve_lines, place_lines
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, read_json, write_json

FOLDER = Path("reports/bench")
PAGE = Path("reports/bench.md")


def append(name: str, measurement: Mapping[str, Any], *, folder: Path = FOLDER) -> Path:
    """Add a measurement of benchmark ``name`` behind the earlier ones.

    Raises:
        InputError: the file there is not one of measurements.
    """
    path = folder / f"{name}.json"
    kept = _read(path) if path.exists() else []
    write_json(path, [*kept, dict(measurement)])
    return path


def _read(path: Path) -> list[dict[str, Any]]:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise InputError(f"{path}: not a list of measurements; move it away and measure again")
    return content


def newest(name: str, kind: str, *, folder: Path = FOLDER) -> Newest:
    """The newest of the ``cases`` or ``curves`` (``kind``) of ``name``; empty: never measured."""
    path = folder / f"{name}.json"
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for measurement in _read(path) if path.exists() else []:
        # A measurement made before there were curves does not have the field.
        for record in measurement.get(kind, ()):
            found[record["name"]] = (record, measurement)
    return found


def plot_path(name: str, *, folder: Path = FOLDER) -> Path:
    """Where the curves of benchmark ``name`` are drawn."""
    return folder / f"{name}.png"


def write_plot(name: str, *, folder: Path = FOLDER) -> None:
    """Draw the newest measurement of every curve of ``name``; without curves write nothing."""
    found = newest(name, "curves", folder=folder)
    if found:
        from benchmarks.plot import draw_scaling, save_plot

        figure = draw_scaling([curve for curve, _ in found.values()])
        save_plot(figure, plot_path(name, folder=folder))


def write_page(names: Sequence[str], *, folder: Path = FOLDER, page: Path = PAGE) -> None:
    """One Markdown page of the newest measurement of every case and curve of ``names``."""
    lines = [
        "# Benchmarks",
        "",
        "What a user would run instead, beside it in the same process, in turns: medians, with the "
        "smallest and the largest value seen. A ratio above 1 is faster than the reference; it is "
        "the median of the ratios of calls in one turn. Memory is what a call holds at most above "
        "what was there before. The newest measurement of every case (`possam bench`); all of them "
        "are in `reports/bench/`.",
        "",
    ]
    for name in names:
        cases, curves = (newest(name, kind, folder=folder) for kind in ("cases", "curves"))
        if not cases and not curves:
            continue
        lines += [f"## {name}", ""]
        if cases:
            lines += case_lines(cases)
        if cases and curves:
            lines.append("")
        if curves:
            plot = Path(os.path.relpath(plot_path(name, folder=folder), page.parent))
            lines += curve_lines(curves, plot=plot.as_posix())
        lines += [*place_lines({**cases, **curves}), ""]
    with atomic_write(page) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")
