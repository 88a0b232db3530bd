"""Stage ``track``: runs, evaluations and a table into MLflow (idempotent); MLflow's pages."""

import os
import sys
from dataclasses import asdict

from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.reading import require_checkout
from possam.runtime.environment import Environment, apply_mlflow_defaults
from possam.runtime.files import write_json


def track(project: Project, name: str) -> None:
    """Send all results of ``project``'s scale to the tracking server, and record what was sent."""
    from possam.reporting.tracking import ingest

    project.table(name)
    layout, uri = Layout(project), Environment.load().tracking_uri
    summary = ingest(results=layout.results, project=project, tracking_uri=uri)
    write_json(layout.tracking(name), {"tracked": name, **asdict(summary)})


def follow_runs(project: Project) -> None:
    """Keep the tracking server up to date until no run is being trained."""
    from possam.reporting.tracking import follow

    uri = Environment.load().tracking_uri
    follow(results=Layout(project).results, project=project, tracking_uri=uri)


def serve(*, host: str, port: int) -> None:
    """Replace this process by ``mlflow ui`` on the tracking database; Ctrl-C stops it."""
    from possam.reporting.tracking import relocate

    require_checkout()
    apply_mlflow_defaults()
    uri = Environment.load().tracking_uri
    relocate(uri)
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    print(f"MLflow: http://{host}:{port} (tracking: {uri})", flush=True)
    os.execv(sys.executable, [*arguments, "--backend-store-uri", uri])
