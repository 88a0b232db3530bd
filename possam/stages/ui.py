"""Stage ``ui``: MLflow's pages over the tracked runs."""

import os
import sys

from possam.runtime.environment import Environment, apply_mlflow_defaults


def serve(*, host: str, port: int) -> None:
    """Replace this process by ``mlflow ui`` on the tracking database; Ctrl-C stops it."""
    apply_mlflow_defaults()
    uri = Environment.load().tracking_uri
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    print(f"MLflow: http://{host}:{port} (tracking: {uri})", flush=True)
    os.execv(sys.executable, [*arguments, "--backend-store-uri", uri])
