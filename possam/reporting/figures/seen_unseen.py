"""PQ of seen and unseen classes (paper, Fig. 6): what was measured, beside published values."""

from typing import Any

from possam.params.figures import BarParams, SeenUnseenParams
from possam.params.project import Project
from possam.params.published import read_columns
from possam.reporting.figures.bars import SUBSETS, Value, draw_bars
from possam.reporting.figures.style import Drawing, scale_line
from possam.reporting.measurement import Measurement, measure
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json


def seen_unseen(project: Project, params: SeenUnseenParams) -> Drawing:
    """The figure.

    Raises:
        InputError: an evaluation, its PQ, or a published value is missing.
    """
    columns = {"seen": params.published.seen, "unseen": params.published.unseen}
    path = project.folder / "published" / params.published.file
    published = {
        name: {subset: Value(value=values[column]) for subset, column in columns.items()}
        for name, values in read_columns(path, tuple(columns.values())).items()
    }
    found = {bar.name: (bar, _measured(project, bar)) for bar in params.bars}
    measured = {
        name: {subset: _value(bar, result, subset) for subset in SUBSETS}
        for name, (bar, result) in found.items()
    }
    note = _note(project)
    synthetic = " (synthetic)" if project.scale.synthetic else ""
    figure = draw_bars(
        measured,
        published,
        title=params.title,
        subtitle=scale_line(project),
        labels=(f"measured{synthetic}", f"published ({params.published.source})"),
        note=note,
    )
    facts = {
        "seeds": list(project.scale.seeds),
        "measured": {
            name: {subset: [one.value, one.low, one.high] for subset, one in pair.items()}
            for name, pair in measured.items()
        },
        "published": {
            name: {subset: one.value for subset, one in pair.items()}
            for name, pair in published.items()
        },
        "published_file": params.published.file,
        "evaluations": [
            entry for bar, result in found.values() for entry in _evaluations(bar, result)
        ],
    }
    return Drawing(figure=figure, note=note, facts=facts)


def _measured(project: Project, bar: BarParams) -> Measurement:
    found = measure(project, bar.origin)
    if found is None:
        raise InputError(
            f"run {bar.run!r} on {bar.benchmark!r}: no evaluation at scale {project.name}; "
            f"make it: possam evaluate {bar.run} {bar.benchmark} --scale {project.name}"
        )
    return found


def _value(bar: BarParams, result: Measurement, subset: str) -> Value:
    key = f"pq_{subset}"
    value, interval = result.metrics.get(key), result.intervals.get(key)
    if value is None or interval is None:
        raise InputError(
            f"run {bar.run!r} on {bar.benchmark!r}: PQ of {subset} classes is missing; add "
            "'panoptic' to the benchmark's metrics and evaluate again"
        )
    return Value(value=value, low=interval[0], high=interval[1])


def _evaluations(bar: BarParams, result: Measurement) -> list[dict[str, Any]]:
    """The evaluations behind a bar, for the card."""
    names = ("seed", "identity", "run_identity", "counts")
    return [
        {
            "run": bar.run,
            "benchmark": bar.benchmark,
            "content_hash": hash_json(one),
            **{name: one[name] for name in names},
        }
        for one in result.evaluations
    ]


def _note(project: Project) -> str:
    numbers = ", ".join(map(str, project.scale.seeds))
    seeds = f"One seed: {numbers}."
    if len(project.scale.seeds) > 1:
        seeds = f"Means over seeds {numbers}."
    end = "; real data, so the two sides must not be compared." if project.scale.synthetic else "."
    return (
        "Bars: PQ averaged over the classes whose names training knew (seen) or did not (unseen). "
        f"Whiskers: {100 * project.scale.evaluation.confidence:g} % bootstrap intervals over "
        f"images. {seeds} Hatched: published values, without intervals{end}"
    )
