"""Stage ``figure``: one figure of ``params/figures.yaml`` as PNG, PDF and a card."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from possam.params.figures import (
    FigureParams,
    SeenUnseenParams,
    TrainingCurvesParams,
    find_figure,
)
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file, write_json
from possam.stages.common import check_device, code_identity, finished_run, set_up_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_CODE = ("possam.stages.figure",)
"""Where the code that makes figures begins."""


@dataclass(frozen=True, kw_only=True)
class _Drawing:
    """A figure, the text at its foot, and its part of the card."""

    figure: "Figure"
    note: str
    facts: dict[str, Any]


def make_figure(project: Project, name: str, *, device: str) -> None:
    """Write ``results/[scale/]figures/<name>.png``, ``.pdf`` and, last, the card ``.json``.

    Raises:
        InputError: no such figure, or something that it is made from is missing.
    """
    from possam.reporting.figures.style import house_style, save_figure

    check_device(device)
    set_up_process(project)
    params = find_figure(project, name)
    png, pdf, card = Layout(project).figure(name)
    with house_style():
        drawing = _draw(project, params, device=device)
        hashes = save_figure(drawing.figure, png=png, pdf=pdf)
    write_json(
        card,
        {
            "figure": name,
            "title": params.title,
            "scale": project.name,
            "subtitle": _subtitle(project),
            "synthetic": project.scale.synthetic,
            "parameters": params.model_dump(mode="json"),
            "note": drawing.note,
            **drawing.facts,
            "code": code_identity(FIGURE_CODE),
            "sha256": hashes,
        },
    )


def _draw(project: Project, params: FigureParams, *, device: str) -> _Drawing:
    if isinstance(params, SeenUnseenParams):
        return _seen_unseen(project, params)
    if isinstance(params, TrainingCurvesParams):
        return _training_curves(project, params)

    from possam.reporting.figures.panels import draw_panels
    from possam.stages.figure_images import BY_KIND

    pictures = BY_KIND[params.kind](project, params, device=device)
    figure = draw_panels(
        pictures.rows,
        pictures.columns,
        title=params.title,
        subtitle=_subtitle(project),
        note=pictures.note,
    )
    return _Drawing(figure=figure, note=pictures.note, facts=pictures.facts)


def _subtitle(project: Project) -> str:
    scale = project.scale
    if scale.synthetic:
        return f"synthetic data and towers; scale {scale.title}; not comparable with the paper"
    return f"scale {scale.title}"


def _seen_unseen(project: Project, params: SeenUnseenParams) -> _Drawing:
    from possam.params.published import read_columns
    from possam.reporting.figures.bars import SUBSETS, Value, draw_bars
    from possam.reporting.measurement import measure

    path = project.folder / "published" / params.published.file
    columns = {"seen": params.published.seen, "unseen": params.published.unseen}
    published = {
        name: {subset: Value(value=values[column]) for subset, column in columns.items()}
        for name, values in read_columns(path, tuple(columns.values())).items()
    }
    measured: dict[str, dict[str, Value]] = {}
    evaluations = []
    for bar in params.bars:
        found = measure(project, bar.origin)
        if found is None:
            raise InputError(
                f"run {bar.run!r} on {bar.benchmark!r}: no evaluation at scale {project.name}; "
                f"make it: possam evaluate {bar.run} {bar.benchmark} --scale {project.name}"
            )
        measured[bar.name] = {}
        for subset in SUBSETS:
            key = f"pq_{subset}"
            value, interval = found.metrics.get(key), found.intervals.get(key)
            if value is None or interval is None:
                raise InputError(
                    f"run {bar.run!r} on {bar.benchmark!r}: PQ of {subset} classes is missing; add "
                    "'panoptic' to the benchmark's metrics and evaluate again"
                )
            measured[bar.name][subset] = Value(value=value, low=interval[0], high=interval[1])
        evaluations += [
            {
                "run": bar.run,
                "seed": one["seed"],
                "benchmark": bar.benchmark,
                "identity": one["identity"],
                "run_identity": one["run_identity"],
                "counts": one["counts"],
                "content_hash": hash_json(one),
            }
            for one in found.evaluations
        ]
    seeds = project.scale.seeds
    confidence = 100 * project.scale.evaluation.confidence
    note = (
        f"Bars: PQ averaged over the classes whose names training knew (seen) or did not (unseen). "
        f"Whiskers: {confidence:g} % bootstrap intervals over images. "
        + ("Means over " if len(seeds) > 1 else "")
        + f"{'seeds' if len(seeds) > 1 else 'One seed:'} {', '.join(map(str, seeds))}. "
        "Hatched: published values, without intervals"
        + (
            "; real data, so the two sides must not be compared."
            if project.scale.synthetic
            else "."
        )
    )
    figure = draw_bars(
        measured,
        published,
        title=params.title,
        subtitle=_subtitle(project),
        labels=(
            "measured" + (" (synthetic)" if project.scale.synthetic else ""),
            f"published ({params.published.source})",
        ),
        note=note,
    )
    values = {
        name: {subset: [one.value, one.low, one.high] for subset, one in pair.items()}
        for name, pair in measured.items()
    }
    return _Drawing(
        figure=figure,
        note=note,
        facts={
            "seeds": list(seeds),
            "measured": values,
            "published": {
                name: {subset: one.value for subset, one in pair.items()}
                for name, pair in published.items()
            },
            "published_file": params.published.file,
            "evaluations": evaluations,
        },
    )


def _training_curves(project: Project, params: TrainingCurvesParams) -> _Drawing:
    from possam.reporting.figures.curves import draw_curves, read_curve

    layout, curves, runs = Layout(project), [], []
    for run, seed in params.needs(project).runs:
        record, path = finished_run(layout, run, seed), layout.run(run, seed) / "metrics.jsonl"
        curves.append(read_curve(path, run=run, seed=seed))
        runs.append(
            {
                "run": run,
                "seed": seed,
                "identity": record["identity"],
                "metrics_sha256": sha256_file(path),
                "iterations": curves[-1].steps[-1],
            }
        )
    note = (
        f"Every run of {', '.join(params.tables)}, one line per seed "
        f"({', '.join(map(str, project.scale.seeds))}). Values are means over the iterations since "
        "the last logged one. Terms are unweighted and summed over all decoder outputs; the total "
        "weighs them as the run's loss parameters say."
    )
    figure = draw_curves(curves, title=params.title, subtitle=_subtitle(project), note=note)
    return _Drawing(
        figure=figure, note=note, facts={"seeds": list(project.scale.seeds), "runs": runs}
    )
