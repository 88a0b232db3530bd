"""Stage ``track``: runs, evaluations and a table into MLflow (idempotent)."""

from dataclasses import asdict

from possam.files import write_json
from possam.layout import Layout
from possam.params import Project
from possam.stages.table import table_params


def track(project: Project, name: str) -> None:
    """Put everything of ``project``'s scale into the tracking server; record what was done."""
    from possam.environment import Environment
    from possam.reporting.tracking import ingest

    table_params(project, name)
    layout, environment = Layout(project), Environment.load()
    summary = ingest(results=layout.results, project=project, tracking_uri=environment.tracking_uri)
    write_json(layout.tracking(name), {"tracked": name, **asdict(summary)})


def follow_runs(project: Project) -> None:
    """Keep the tracking server up to date with live runs until interrupted."""
    from possam.environment import Environment
    from possam.reporting.tracking import follow

    follow(
        results=Layout(project).results,
        project=project,
        tracking_uri=Environment.load().tracking_uri,
    )
