"""Stage ``compare``: a table's figures of two checkouts, paired by training seed and image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import PER_IMAGE, Place
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, read_json

if TYPE_CHECKING:
    from possam.evaluation.retraining import Retrained
    from possam.evaluation.statistics import ImageStatistics

Cells = dict[str, dict[tuple[str, str], "Retrained"]]
"""By metric, and by row and the title of the group of columns."""


def compare_studies(project: Project, name: str, before: Path, *, out: Path | None) -> None:
    """Print what changed in table ``name`` from the checkout ``before`` to this one, as Markdown.

    Both must hold the table's evaluations for all seeds of this scale, on the same images.
    External predictions are left out: they are nobody's trainings.

    Args:
        before: root of the other checkout (where its ``results`` folder lies).
        out: also write the text here.

    Raises:
        InputError: no such table or checkout, an evaluation is missing, other images.
    """
    from possam.reporting.study_text import study_text

    if not before.is_dir():
        raise InputError(f"{before}: no such folder; name the root of another checkout")
    places = _places(project, name)
    layouts = Layout(project, root=before), Layout(project)
    other_data = {
        place.benchmark for place in places.values() if len(_data_sets(layouts, place)) > 1
    }
    old, new = (_commits(layout, places.values()) for layout in layouts)
    text = study_text(
        _cells(project, name, places, layouts),
        table=name,
        commits=(old, new),
        other_data=sorted(other_data),
        scale=project.scale.title,
        seeds=project.scale.seeds,
        confidence=project.scale.evaluation.confidence,
    )
    print(text, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(out) as file:
            file.write(text)


def _places(project: Project, name: str) -> dict[tuple[str, str], Place]:
    """By row and group: what is trained here and counted image by image."""
    table = project.table(name)
    places = {
        (row.name, group): cell.place
        for row in table.rows
        for group, cell in row.cells.items()
        if not cell.place.is_external
        and PER_IMAGE & {column.metric for column in table.columns if column.group == group}
    }
    if not places:
        raise InputError(
            f"{name}: nothing in it is both trained here and counted image by image; "
            "compare another table"
        )
    return places


def _cells(
    project: Project,
    name: str,
    places: Mapping[tuple[str, str], Place],
    layouts: tuple[Layout, Layout],
) -> Cells:
    from possam.evaluation.retraining import compare_versions
    from possam.runtime.progress import Progress

    table, scale = project.tables[name], project.scale
    found: Cells = {}
    progress = Progress(len(places), label=f"compare {name}", unit="evaluations")
    for (row, group), place in places.items():
        columns = [column for column in table.columns if column.group == group]
        metrics = [column.metric for column in columns if column.metric in PER_IMAGE]
        old, new = (_statistics(layout, place, metrics) for layout in layouts)
        results = compare_versions(
            old,
            new,
            run=place.run,
            benchmark=place.benchmark,
            samples=scale.evaluation.bootstrap_samples,
            seed=scale.evaluation.bootstrap_seed,
        )
        for metric in metrics:
            if metric in results:
                found.setdefault(metric, {})[row, table.groups[group]] = results[metric]
        progress.update()
    progress.close()
    return found


def _data_sets(layouts: tuple[Layout, Layout], place: Place) -> set[str]:
    """Hashes of the converted data sets behind both checkouts' evaluations, which must be there.

    Another version of the conversion may write other bytes of the same labels: they need not agree.
    """
    from possam.evaluation.summary import RESULT

    contents = set()
    for layout in layouts:
        for key in place.evaluations(layout.project.scale.seeds):
            file = layout.evaluation(*key) / RESULT
            if not file.is_file():
                target = file.relative_to(layout.root)
                raise InputError(
                    f"{file}: no such evaluation; make it in {layout.root.resolve()} "
                    f"(with the same seeds): snakemake {target}"
                )
            evaluation = read_json(file)
            if place.variant not in evaluation["variants"]:
                raise InputError(f"{file}: has no variant {place.variant!r}; evaluate it again")
            contents.add(evaluation["inputs"]["dataset"])
    return contents


def _commits(layout: Layout, places: Iterable[Place]) -> str:
    """Commits of the evaluations' code, as their provenance has them."""
    found = set()
    for place in places:
        for key in place.evaluations(layout.project.scale.seeds):
            git = read_json(layout.evaluation(*key) / "provenance.json")["git"]
            found.add(git["commit"][:10] + (" with changes" if git["dirty"] else ""))
    return ", ".join(sorted(found))


def _statistics(
    layout: Layout, place: Place, metrics: Sequence[str]
) -> Mapping[int, "ImageStatistics"]:
    from possam.evaluation.seeds import load_seeds

    keys = place.evaluations(layout.project.scale.seeds)
    tables = load_seeds([layout.evaluation(*key) for key in keys], place.variant)
    if "map" not in metrics:  # AP costs most of a resample
        tables = [replace(one, instances=None) for one in tables]
    return {key.seed: one for key, one in zip(keys, tables, strict=True)}
