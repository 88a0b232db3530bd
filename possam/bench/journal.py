"""Measurements on disk: ``reports/bench/<benchmark>.json`` grows, ``reports/bench.md`` shows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from possam.errors import InputError
from possam.files import atomic_write, read_json, write_json

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


def write_page(names: Sequence[str], *, folder: Path = FOLDER, page: Path = PAGE) -> None:
    """One Markdown table of the newest measurement of every case of ``names``."""
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
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        newest: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        for measurement in _read(path):
            for case in measurement["cases"]:
                newest[case["name"]] = (case, measurement)
        lines += [f"## {name}", "", *_table(newest), "", *_notes(newest), ""]
    with atomic_write(page) as stream:
        stream.write("\n".join(lines).rstrip() + "\n")


def _table(newest: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    rows = [
        "| case | reference | ratio | asked | here | reference's | memory, share | difference |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (case, _) in newest.items():
        label = name.partition("/")[2]
        rows.append(_row(label, case, _asked(case)))
        # A measurement made before there could be further references does not have the field.
        for other in case.get("others", ()):
            rows.append(_row(label, {**other, "ours": case["ours"]}, _target(other)))
    return rows


def _row(label: str, compared: Mapping[str, Any], asked: str) -> str:
    cells = [
        label,
        compared["reference"],
        _ratio(compared["ratio"]),
        asked,
        *(_seconds(compared[side]) for side in ("ours", "theirs")),
        _memory(compared),
        "" if compared["error"] is None else f"{compared['error']:.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _asked(case: Mapping[str, Any]) -> str:
    seconds = case["target_seconds"]
    return _target(case) or ("" if seconds is None else f"{seconds:g} s")


def _target(compared: Mapping[str, Any]) -> str:
    return "" if compared["target"] is None else f"{compared['target']:g}"


def _seconds(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return ""
    value = side["median_s"]
    return f"{1000 * value:.3g} ms" if value < 1 else f"{value:.3g} s"


def _memory(case: Mapping[str, Any]) -> str:
    share = case["memory_share"]
    if share is None:
        return ""
    own, other = (case[side]["peak_memory_mib"] for side in ("ours", "theirs"))
    target = case.get("target_memory")
    asked = "" if target is None else f" (asked {100 * target:g} %)"
    return f"{own:.0f} of {other:.0f} MiB, {100 * share:.0f} %{asked}"


def _notes(newest: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[str]:
    lines = []
    for name, (case, _) in newest.items():
        parts = [f"{case['items']} {case['unit']}s a call" if case["items"] > 1 else ""]
        parts.append(f"difference: {case['error_is']}" if case["error_is"] else "")
        parts.append(case["note"])
        text = "; ".join(part for part in parts if part)
        if text:
            lines.append(f"- {name.partition('/')[2]}: {text}.")
    places: dict[str, list[str]] = {}
    for case, measurement in newest.values():
        hardware, git = measurement["hardware"], measurement["git"]
        dirty = ", changed" if git["dirty"] else ""
        gpus = ", ".join(hardware["gpus"]) or "no GPU"
        where = (
            f"{measurement['when'][:10]}, commit {git['commit'][:10]}{dirty}, "
            f"{hardware['cpu']}, {measurement['threads']} threads, {gpus}, "
            f"torch {measurement['packages']['torch']}, Python {measurement['python']}"
        )
        places.setdefault(where, []).append(case["name"].partition("/")[2])
    for where, names in places.items():
        lines.append(f"- measured {where}" + (f": {', '.join(names)}." if len(places) > 1 else "."))
    return lines
