"""Stage ``figure``: one figure of ``params/figures.yaml`` as PNG, PDF and a card."""

from typing import TYPE_CHECKING

from possam.params.figures import (
    ErrorBudgetParams,
    FigureParams,
    SeenUnseenParams,
    TrainingCurvesParams,
    find_figure,
)
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.files import sha256_file, write_json
from possam.runtime.gpu_driver import check_device
from possam.stages.common import code_identity, finished_run, set_up_process

if TYPE_CHECKING:
    from possam.reporting.figures.style import Drawing

FIGURE_CODE = ("possam.stages.figure",)
"""Entry points of the code that makes figures, for its hash."""


def make_figure(project: Project, name: str, *, device: str) -> None:
    """Write ``results/[scale/]figures/<name>.png``, ``.pdf`` and, last, the card ``.json``.

    Raises:
        InputError: no such figure, or something that it is made from is missing.
    """
    from possam.reporting.figures.style import house_style, save_figure, scale_line

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
            "subtitle": scale_line(project),
            "synthetic": project.scale.synthetic,
            "parameters": params.model_dump(mode="json"),
            "note": drawing.note,
            **drawing.facts,
            "code": code_identity(FIGURE_CODE),
            "sha256": hashes,
        },
    )


def _draw(project: Project, params: FigureParams, *, device: str) -> "Drawing":
    if isinstance(params, SeenUnseenParams):
        from possam.reporting.figures.seen_unseen import seen_unseen

        return seen_unseen(project, params)
    if isinstance(params, ErrorBudgetParams):
        from possam.reporting.figures.error_budget import error_budget

        return error_budget(project, params)
    if isinstance(params, TrainingCurvesParams):
        return _training_curves(project, params)

    from possam.reporting.figures.panels import draw_panels
    from possam.reporting.figures.style import Drawing, scale_line
    from possam.stages.figure_images import BY_KIND

    made = BY_KIND[params.kind](project, params, device=device)
    titles = {"title": params.title, "subtitle": scale_line(project), "note": made.note}
    figure = draw_panels(made.rows, made.columns, **titles)
    return Drawing(figure=figure, note=made.note, facts=made.facts)


def _training_curves(project: Project, params: TrainingCurvesParams) -> "Drawing":
    from possam.reporting.figures.curves import draw_curves, read_curve
    from possam.reporting.figures.style import Drawing, scale_line

    layout, curves, runs = Layout(project), [], []
    for run, seed in params.needs(project).runs:
        record, path = finished_run(layout, run, seed), layout.run(run, seed) / "metrics.jsonl"
        curves.append(read_curve(path, run=run, seed=seed))
        facts = {"identity": record["identity"], "metrics_sha256": sha256_file(path)}
        runs.append({"run": run, "seed": seed, **facts, "iterations": curves[-1].steps[-1]})
    note = (
        f"Every run of {', '.join(params.tables)}, one line per seed "
        f"({', '.join(map(str, project.scale.seeds))}). Values are means over the iterations since "
        "the last logged one. Terms are unweighted and summed over all decoder outputs; the total "
        "weighs them as the run's loss parameters say."
    )
    figure = draw_curves(curves, title=params.title, subtitle=scale_line(project), note=note)
    facts = {"seeds": list(project.scale.seeds), "runs": runs}
    return Drawing(figure=figure, note=note, facts=facts)
