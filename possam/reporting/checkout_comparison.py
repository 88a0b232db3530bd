"""How a table differs from that of another checkout: its cells checked, compared and written."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from possam.evaluation.comparison import (
    Change,
    compare_trainings,
    has_seeds,
    load_seeds,
    mean_change,
)
from possam.evaluation.metrics import DECIMALS, METRICS, PER_IMAGE
from possam.evaluation.statistics import ImageStatistics
from possam.evaluation.summary import RESULT
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import Origin, TableParams
from possam.reporting.table_text import markdown_table
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.progress import Progress


def compare_checkouts(project: Project, name: str, before: Path) -> str:
    """What changed in table ``name`` from the checkout ``before`` to this one, as Markdown.

    Both must hold the table's evaluations for all seeds of this scale, on the same images.
    External predictions are left out, since nothing is trained for them.

    Args:
        before: root of the other checkout (where its ``results`` folder lies).

    Raises:
        InputError: no such table or checkout, a missing evaluation, or different images.
    """
    if not before.is_dir():
        raise InputError(f"{before}: no such folder; name the root of another checkout")
    origins = _origins(project.table(name), name)
    layouts = Layout(project, root=before), Layout(project)
    (old, data_before), (new, data_after) = (_inputs(each, origins.values()) for each in layouts)
    other_data = {
        each.benchmark for each in data_before if len(data_before[each] | data_after[each]) > 1
    }
    cells = _cells(project, name, origins, layouts)
    seeds, confidence = project.scale.seeds, project.scale.evaluation.confidence
    covered = (
        "of other test images only, paired: with one seed they do not cover what another training "
        "would give."
    )
    if has_seeds([change for found in cells.values() for change in found.values()]):
        covered = "of other test images and other seeds, both paired."
    texts = [
        f"# {name}: after minus before",
        f"Commits: {old} before, {new} after.",
        f"Scale: {project.scale.title}. Seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}. Percent; differences in percentage points, with "
        f"{100 * confidence:g} % intervals {covered}",
    ]
    if other_data:
        texts.append(
            f"The converted data sets differ: {', '.join(sorted(other_data))} (same images; "
            "another version of the conversion may write the same labels in other bytes)."
        )
    for metric, found in cells.items():
        rows = [
            [row, group, *_figures([change], confidence, DECIMALS[metric])]
            for (row, group), change in found.items()
        ]
        mean = _figures(list(found.values()), confidence, DECIMALS[metric])
        header = ("Row", "Benchmark", "Before", "After", "Difference")
        rows.append([f"mean of {len(found)}", "", *mean])
        texts += [f"## {METRICS[metric]}", markdown_table(header, rows)]
    return "\n\n".join(texts) + "\n"


def _figures(results: Sequence[Change], confidence: float, places: int) -> tuple[str, str, str]:
    """Means of ``results`` before and after, and their difference with its interval."""
    before, after = (
        sum(getattr(each, when) for each in results) / len(results) for when in ("before", "after")
    )
    change = mean_change(results, confidence=confidence)
    difference = f"{change.value:+.{places}f} [{change.low:+.{places}f}, {change.high:+.{places}f}]"
    return f"{before:.{places}f}", f"{after:.{places}f}", difference


def _origins(table: TableParams, name: str) -> dict[tuple[str, str], Origin]:
    """(Row, group) -> the origin; only origins that are trained here and measured per image."""
    origins = {
        (row.name, group): cell.origin
        for row in table.rows
        for group, cell in row.cells.items()
        if cell.origin.is_trained
        and PER_IMAGE & {column.metric for column in table.columns if column.group == group}
    }
    if not origins:
        raise InputError(
            f"{name}: nothing in it is both trained here and measured per image; "
            "compare another table"
        )
    return origins


def _cells(
    project: Project,
    name: str,
    origins: Mapping[tuple[str, str], Origin],
    layouts: tuple[Layout, Layout],
) -> dict[str, dict[tuple[str, str], Change]]:
    """Metric -> (row, title of the group of columns) -> what changed."""
    table, found = project.tables[name], dict[str, dict[tuple[str, str], Change]]()
    progress = Progress(len(origins), label=f"compare {name}", unit="evaluations")
    for (row, group), origin in origins.items():
        shown = (column.metric for column in table.columns if column.group == group)
        metrics = [metric for metric in shown if metric in PER_IMAGE]
        old, new = (_statistics(layout, origin, metrics) for layout in layouts)
        results = compare_trainings(
            old,
            new,
            run=origin.run,
            benchmark=origin.benchmark,
            bootstrap=project.scale.evaluation.bootstrap,
        )
        for metric in metrics:
            if metric in results:
                found.setdefault(metric, {})[row, table.groups[group]] = results[metric]
        progress.update()
    progress.close()
    return found


def _inputs(layout: Layout, origins: Iterable[Origin]) -> tuple[str, dict[Origin, set[str]]]:
    """Commits of the code behind the evaluations, and hashes of the data sets by origin.

    Raises:
        InputError: an evaluation or the variant is missing.
    """
    commits, data_sets = set(), dict[Origin, set[str]]()
    for origin in origins:
        for key in origin.evaluations(layout.project.scale.seeds):
            file = layout.evaluation(*key) / RESULT
            if not file.is_file():
                target = file.relative_to(layout.root)
                raise InputError(
                    f"{file}: no such evaluation; make it in {layout.root.resolve()} "
                    f"(with the same seeds): snakemake {target}"
                )
            evaluation = read_json(file)
            if origin.variant not in evaluation["variants"]:
                raise InputError(f"{file}: has no variant {origin.variant!r}; evaluate it again")
            data_sets.setdefault(origin, set()).add(evaluation["inputs"]["dataset"])
            git = read_json(file.with_name("provenance.json"))["git"]
            commits.add(git["commit"][:10] + (" with changes" if git["dirty"] else ""))
    return ", ".join(sorted(commits)), data_sets


def _statistics(
    layout: Layout, origin: Origin, metrics: Sequence[str]
) -> Mapping[int, ImageStatistics]:
    keys = origin.evaluations(layout.project.scale.seeds)
    folders = [layout.evaluation(*key) for key in keys]
    tables = load_seeds(folders, origin.variant, ap="map" in metrics)
    return dict(zip((key.seed for key in keys), tables, strict=True))
