"""Stage ``table``: evaluations to CSV, Markdown and a provenance card."""

from typing import TYPE_CHECKING

from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import Place
from possam.runtime.errors import InputError
from possam.runtime.files import read_json

if TYPE_CHECKING:
    from possam.reporting.measurement import Measurement


def measure(project: Project, place: Place) -> "Measurement | None":
    """What was measured at ``place``; None if an evaluation or the variant is missing."""
    from possam.evaluation.seeds import average_seeds
    from possam.reporting.measurement import Measurement

    layout, seeds, settings = Layout(project), project.scale.seeds, project.scale.evaluation
    folders = [layout.evaluation(*key) for key in place.evaluations(seeds)]
    files = [folder / "evaluation.json" for folder in folders]
    if not all(file.is_file() for file in files):
        return None
    evaluations = tuple(read_json(file) for file in files)
    if any(place.variant not in evaluation["variants"] for evaluation in evaluations):
        return None
    if len(evaluations) == 1:
        return Measurement.of(evaluations[0], place.variant)
    average = average_seeds(
        folders,
        place.variant,
        samples=settings.bootstrap_samples,
        seed=settings.bootstrap_seed,
        confidence=settings.confidence,
    )
    return Measurement(
        variant=place.variant,
        evaluations=evaluations,
        metrics=average.mean,
        std=average.std,
        intervals=average.intervals,
    )


def make_table(project: Project, name: str) -> None:
    """Write ``results/[scale/]<name>.csv``, ``.md``, ``.tex`` and ``.json``."""
    from possam.reporting.measurement import Comparisons
    from possam.reporting.tables import build_table
    from possam.stages.compare import compare_rows

    table = project.table(name)
    places = table.places()
    found = {place: measured for place in places if (measured := measure(project, place))}
    complete = len(found) == len(places)  # if not, build_table says what is missing
    comparisons = compare_rows(project, table) if complete else Comparisons()
    build_table(project, name, found, comparisons, out=Layout(project).table(name))


def show_table(project: Project, name: str) -> None:
    """Print a finished table."""
    from possam.reporting.tables import print_table

    project.table(name)
    csv = Layout(project).table(name)
    if not csv.is_file():
        raise InputError(f"{csv}: no such table yet; make it: snakemake {csv}")
    print_table(csv)
