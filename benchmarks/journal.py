"""Measurements on disk, and the page of the newest ones.

``reports/bench/<benchmark>.json`` keeps all of them, ``reports/bench.md`` shows the newest.
Curves are drawn in ``reports/bench/<benchmark>.png``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.page import Newest, case_lines, curve_lines, setup_lines
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, read_json, write_json

FOLDER = Path("reports/bench")
PAGE = Path("reports/bench.md")


def append(name: str, measurement: Mapping[str, Any], *, folder: Path = FOLDER) -> Path:
    """Append a measurement to those of benchmark ``name``.

    Raises:
        InputError: the file there does not hold measurements.
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
    """The newest ``cases`` or ``curves`` (``kind``) of ``name``; empty if never measured."""
    path = folder / f"{name}.json"
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for measurement in _read(path) if path.exists() else []:
        # Measurements from before there were curves do not have the field.
        for record in measurement.get(kind, ()):
            found[record["name"]] = (record, measurement)
    return found


def plot_path(name: str, *, folder: Path = FOLDER) -> Path:
    """The picture of the curves of benchmark ``name``."""
    return folder / f"{name}.png"


def write_plot(name: str, *, folder: Path = FOLDER) -> None:
    """Draw the newest measurement of every curve of ``name``, if there are curves."""
    found = newest(name, "curves", folder=folder)
    if found:
        from benchmarks.plot import draw_scaling, save_plot

        figure = draw_scaling([curve for curve, _ in found.values()])
        save_plot(figure, plot_path(name, folder=folder))


def write_page(names: Sequence[str], *, folder: Path = FOLDER, page: Path = PAGE) -> None:
    """Write one Markdown page: the newest measurement of every case and curve of ``names``."""
    lines = [
        "# Benchmarks",
        "",
        "PosSAM beside what a user would run instead. Both sides take turns in one process; "
        "numbers are medians, with the smallest and the largest value in brackets. A ratio above 1 "
        "means that PosSAM is faster; it compares calls of one turn. Memory is what a call holds "
        "at most, above what was there before. This page shows the newest measurement of every "
        "case; `reports/bench/` keeps all. `make bench` measures again; "
        "[how](../docs/benchmarks.md).",
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
        lines += [*setup_lines({**cases, **curves}), ""]
    with atomic_write(page) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")
