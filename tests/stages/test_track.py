"""MLflow's pages: which process shows them, and what others can see of its address."""

import os
import socket
from pathlib import Path

import pytest

from possam import cli


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of the program that takes the place of the command."""
    calls: list[tuple[list[str], dict[str, str]]] = []

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        calls.append((arguments, environment))

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("POSSAM_TRACKING_URI", raising=False)
    return calls


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def test_a_password_is_no_argument(
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri = "postgresql://user:geheim@db/possam"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    port = free_port()
    assert cli.main(["ui", "--port", str(port)]) == 0
    ((arguments, environment),) = started
    assert "geheim" not in " ".join(arguments) and str(port) in arguments
    assert environment["MLFLOW_BACKEND_STORE_URI"] == uri
    out = capsys.readouterr().out
    assert f"http://127.0.0.1:{port} (tracking: postgresql://***@db/possam)" in out


def test_a_tracking_server_has_pages_of_its_own(
    started: list[tuple[list[str], dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:geheim@server/mlflow")
    assert cli.main(["ui"]) == 0 and not started
    assert "https://***@server/mlflow" in capsys.readouterr().out


def test_a_port_that_is_taken(
    started: list[tuple[list[str], dict[str, str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = int(holder.getsockname()[1])
        assert cli.main(["ui", "--port", str(port)]) == 2
    assert not started
    error = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1" in error and f"--port {port + 1}" in error
