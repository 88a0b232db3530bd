"""The tables and notes of ``reports/bench.md``, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.power_law import TOLERANCE

Newest = Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]
"""Name -> the newest record of a case or curve, and the measurement that holds it."""

_COSTS = {"median_s": "time", "peak_memory_mib": "memory"}


def case_lines(cases: Newest) -> list[str]:
    """A table of the cases, one row per reference, and a note on each case."""
    notes = _notes(cases)
    return [*_table(cases), "", *notes]


def curve_lines(curves: Newest, *, plot: str) -> list[str]:
    """The plot (its path from the page), a table of exponents, a table of points, and notes."""
    found = [curve for curve, _ in curves.values()]
    notes = [line for curve in found for line in _curve_notes(curve)]
    return [
        f"![Cost against size, one column per quantity]({plot})",
        "",
        "Cost grows as size to the power of the exponent, which is fitted by least squares to the "
        "logarithms of median times and of peak memory. ± is its standard error; the standard "
        "deviation around the line is in brackets. All sizes of a curve take turns.",
        "",
        *_exponents(found),
        "",
        *_points(found),
        "",
        *notes,
    ]


def setup_lines(found: Newest) -> list[str]:
    """When, where and with what it was measured; names the cases if this differs between them."""
    lines = []
    setups: dict[str, list[str]] = {}
    for record, measurement in found.values():
        hardware, git = measurement["hardware"], measurement["git"]
        dirty = ", changed" if git["dirty"] else ""
        gpus = ", ".join(hardware["gpus"]) or "no GPU"
        where = (
            f"{measurement['when'][:10]}, commit {git['commit'][:10]}{dirty}, "
            f"{hardware['cpu']}, {measurement['threads']} threads, {gpus}, "
            f"torch {measurement['packages']['torch']}, Python {measurement['python']}"
        )
        setups.setdefault(where, []).append(record["name"].partition("/")[2])
    for where, names in setups.items():
        lines.append(f"- measured {where}" + (f": {', '.join(names)}." if len(setups) > 1 else "."))
    return lines


def _table(cases: Newest) -> list[str]:
    rows = [
        "| case | reference | ratio | target | here | reference's | memory, share | difference |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, (case, _) in cases.items():
        label = name.partition("/")[2]
        rows.append(_row(label, case, _case_target(case)))
        # Measurements from before there were further references do not have the field.
        for other in case.get("others", ()):
            rows.append(_row(label, {**other, "ours": case["ours"]}, _target(other)))
    return rows


def _row(label: str, compared: Mapping[str, Any], target: str) -> str:
    cells = [
        label,
        compared["reference"],
        _ratio(compared["ratio"]),
        target,
        *(_seconds(compared[side]) for side in ("ours", "theirs")),
        _memory(compared),
        _error(compared),
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def _error(compared: Mapping[str, Any]) -> str:
    return "" if compared["error"] is None else f"{compared['error']:.1e}"


def _case_target(case: Mapping[str, Any]) -> str:
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
    wish = "" if target is None else f" (target {100 * target:g} %)"
    return f"{own:.0f} of {other:.0f} MiB, {100 * share:.0f} %{wish}"


def _notes(cases: Newest) -> list[str]:
    lines = []
    for name, (case, _) in cases.items():
        parts = [f"{case['items']} {case['unit']}s per call" if case["items"] > 1 else ""]
        parts.append(f"difference: {case['error_is']}" if case["error_is"] else "")
        parts += _device_notes(case)
        parts.append(case["note"])
        text = "; ".join(part for part in parts if part)
        if text:
            lines.append(f"- {name.partition('/')[2]}: {text}.")
    return lines


_SLOW_FIRST, _LONG_FIRST = 3.0, 1.0
"""A first call is reported if it takes this many times as long as later ones, and this many s."""


def _device_notes(case: Mapping[str, Any]) -> Iterator[str]:
    """Rates beside published ones, shares of the ceiling, and first calls that compile.

    Older measurements do not have these fields.
    """
    sides = {"here": case["ours"], "the reference": case["theirs"]}
    known = {name: side for name, side in sides.items() if side is not None}
    if published := case.get("published"):
        rates = ", ".join(f"{side['per_second']:.3g} {name}" for name, side in known.items())
        value, where = published
        yield f"{case['unit']}s per second: {rates}, {value:g} published ({where})"
    if ceiling := case.get("ceiling_flops_per_s"):
        shares = ", ".join(
            f"{100 * side['share_of_ceiling']:.0f} % {name}" for name, side in known.items()
        )
        yield (
            f"{case['flops'] / 1e12:.3g} TFLOP per call as the reference does it; of the "
            f"{ceiling / 1e12:.3g} TFLOP/s that large matrix products reach: {shares}"
        )
    for name, side in known.items():
        first = side.get("first_s")
        if first is not None and first > max(_LONG_FIRST, _SLOW_FIRST * side["median_s"]):
            yield f"the first call took {first:.3g} s {name}"


def _sides(curve: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(``ours`` or ``theirs``, the name of its row) of the sides that have a fit."""
    label = curve["name"].partition("/")[2]
    if any(curve["fits"]["ours"].values()):
        yield "ours", label
    if any(curve["fits"]["theirs"].values()):
        yield "theirs", f"{label}, {_reference(curve)}"


def _reference(curve: Mapping[str, Any]) -> str:
    """Name of the reference, from a point that has one."""
    return next((p["reference"] for p in curve["points"] if p["theirs"] is not None), "")


def _exponents(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| cost of | against | sizes | time grows with exponent | memory grows with exponent "
        "| target for memory |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for curve in curves:
        target = curve["target_memory_exponent"]
        for side, label in _sides(curve):
            sizes = [p["size"] for p in curve["points"] if p[side] is not None]
            cells = [
                label,
                curve["quantity"],
                f"{sizes[0]:,} to {sizes[-1]:,}",
                *(_law(curve["fits"][side][cost]) for cost in _COSTS),
                "" if target is None or side == "theirs" else f"at most {target:g}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _law(law: Mapping[str, Any] | None) -> str:
    if law is None:
        return ""
    exponent = round(law["exponent"], 2) + 0.0  # no minus zero
    text = f"{exponent:.2f} ± {law['error']:.2f} [{100 * law['residual']:.1f} %]"
    return text if law["holds"] else f"{text}, no power law"


def _points(curves: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| cost of | size | here | memory | reference's | its memory | ratio | difference |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for curve in curves:
        for point in curve["points"]:
            cells = [curve["name"].partition("/")[2], f"{point['size']:,}"]
            for side in ("ours", "theirs"):
                cells += [_spread(point[side]), _mib(point[side])]
            cells += [_ratio(point["ratio"]), _error(point)]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _spread(side: Mapping[str, Any] | None) -> str:
    if side is None:
        return ""
    scale, unit = (1000, "ms") if side["median_s"] < 1 else (1, "s")
    low, middle, high = (f"{scale * side[key]:.3g}" for key in ("low_s", "median_s", "high_s"))
    return f"{middle} [{low}, {high}] {unit}"


def _mib(side: Mapping[str, Any] | None) -> str:
    if side is None or side["peak_memory_mib"] is None:
        return ""
    return f"{side['peak_memory_mib']:,.0f} MiB"


def _curve_notes(curve: Mapping[str, Any]) -> list[str]:
    label = curve["name"].partition("/")[2]
    kinds = {p["error_is"] for p in curve["points"] if p["error"] is not None}
    text = "; ".join(
        [*([curve["note"]] if curve["note"] else []), *map("difference: {}".format, kinds)]
    )
    lines = [f"- {label}: {text}."] if text else []
    for side, row in _sides(curve):
        for cost, word in _COSTS.items():
            law = curve["fits"][side][cost]
            if law is not None and not law["holds"]:
                local = ", ".join(f"{one:.2f}" for one in law["local"])
                lines.append(
                    f"- {row}: its {word} is no power law: a point lies {100 * law['worst']:.0f} % "
                    f"off the line (more than {100 * TOLERANCE:g} %); exponents between "
                    f"neighbouring sizes: {local}."
                )
    for point in curve["points"]:
        if point["note"]:
            lines.append(f"- {label} at {point['size']:,}: {point['note']}.")
    return lines
