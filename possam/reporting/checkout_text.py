"""How a table differs from that of another checkout, as Markdown."""

from collections.abc import Mapping, Sequence

from possam.evaluation.comparison import Change, Difference, has_seeds, mean_change
from possam.evaluation.metrics import DECIMALS, METRICS
from possam.reporting.table_text import markdown_table


def checkout_text(
    cells: Mapping[str, Mapping[tuple[str, str], Change]],
    *,
    table: str,
    commits: tuple[str, str],
    other_data: Sequence[str],
    scale: str,
    seeds: Sequence[int],
    confidence: float,
) -> str:
    """One Markdown table per metric: the figures of each row, and the mean over all rows.

    Args:
        cells: by metric, and by row and title of its group of columns.
        commits: of the code before and after.
        other_data: benchmarks whose converted data sets are not the same bytes.
        confidence: of the intervals.
    """
    results = [result for found in cells.values() for result in found.values()]
    level, plural = f"{100 * confidence:g} %", "s" if len(seeds) > 1 else ""
    lines = [
        f"# {table}: after minus before",
        "",
        f"Commits: {commits[0]} before, {commits[1]} after.",
        "",
        f"Scale: {scale}. Seed{plural} {', '.join(map(str, seeds))}. Percent; differences in "
        f"percentage points, with {level} intervals "
        + (
            "of other test images and other seeds, both paired."
            if has_seeds(results)
            else "of other test images only, paired: with one seed they do not cover what another "
            "training would give."
        ),
        "",
    ]
    if other_data:
        lines += [
            f"The converted data sets differ: {', '.join(other_data)} (same images; another "
            "version of the conversion may write the same labels in other bytes).",
            "",
        ]
    for metric, found in cells.items():
        places = DECIMALS[metric]
        rows = [
            _row(row, group, [result], confidence, places) for (row, group), result in found.items()
        ]
        rows.append(_row(f"mean of {len(found)}", "", list(found.values()), confidence, places))
        header = ("Row", "Benchmark", "Before", "After", "Difference")
        lines += [f"## {METRICS[metric]}", "", *markdown_table(header, rows), ""]
    return "\n".join(lines)


def _row(
    row: str, group: str, results: Sequence[Change], confidence: float, places: int
) -> list[str]:
    before, after = (
        sum(getattr(each, when) for each in results) / len(results) for when in ("before", "after")
    )
    change = _change(mean_change(results, confidence=confidence), places)
    return [row, group, f"{before:.{places}f}", f"{after:.{places}f}", change]


def _change(change: Difference, places: int) -> str:
    bounds = ", ".join(f"{bound:+.{places}f}" for bound in (change.low, change.high))
    return f"{change.value:+.{places}f} [{bounds}]"
