"""Stage ``report``: every table and figure of a scale on one HTML page."""

from pathlib import Path

from possam.params.figures import load_figures, unserved_figures
from possam.params.layout import Layout
from possam.params.project import Project


def make_report(project: Project) -> None:
    """Write ``reports/[scale/]report.html``; prints which tables and figures the scale lacks.

    Raises:
        InputError: a table or a figure is missing.
    """
    from possam.reporting.report import ReportFiles, write_report

    layout = Layout(project)
    files = ReportFiles(
        tables=[layout.table(name).with_suffix(".json") for name in project.tables],
        figures=[layout.figure(name)[2] for name in load_figures(project)],
        decisions=project.folder / "decisions.md",
        jobs=job_records(project, layout),
    )
    write_report(project, files, out=layout.report)
    for lack in (project.unserved | unserved_figures(project)).values():
        print(f"not on the page: {lack}")


def job_records(project: Project, layout: Layout) -> dict[str, Path]:
    """Provenance files of all trainings and evaluations behind the tables, by printed name."""
    seeds = project.scale.seeds
    keys = dict.fromkeys(
        key for table in project.tables.values() for key in table.evaluations(seeds)
    )
    jobs = {
        f"train {key.run}, seed {key.seed}": layout.run(key.run, key.seed)
        for key in keys
        if key.is_trained
    }
    for key in keys:
        name = f"evaluate {key.run}, seed {key.seed} on {key.benchmark}, {key.condition}"
        if key.is_external:
            name = f"score {key.run} on {key.benchmark}"
        elif not key.is_trained:
            name = f"evaluate {key.run} on {key.benchmark}"
        jobs[name] = layout.evaluation(*key)
    return {name: folder / "provenance.json" for name, folder in jobs.items()}
