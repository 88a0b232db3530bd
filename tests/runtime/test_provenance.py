"""Provenance says what a result was made from, also where there is no git."""

import json
import os
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest

from possam.runtime import provenance as provenance_module
from possam.runtime.environment import DEFAULT_TRACKING_URI, MLFLOW_DEFAULTS, Environment
from possam.runtime.provenance import (
    git_state,
    hardware,
    package_versions,
    peak_memory_mib,
    provenance,
    source_state,
)


def git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_state_follows_commit_and_edits(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("1")
    state = git_state(tmp_path)
    assert state["commit"] == "unknown" and "no commit" in state["note"]
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": head, "dirty": False, "note": ""}
    for folder in ("results", "reports"):
        (tmp_path / folder).mkdir()
    for name in ("results/table1.csv", "reports/bench.md", "dvc.lock"):
        (tmp_path / name).write_text("made by the commit")
    assert git_state(tmp_path)["dirty"] is False
    (tmp_path / "a.txt").write_text("2")
    (tmp_path / "b.txt").write_text("2")
    state = git_state(tmp_path)
    assert (state["commit"], state["dirty"]) == (head, True) and state["note"].startswith("2 files")


def test_without_a_checkout_or_without_git_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    state = git_state(tmp_path)
    assert (state["commit"], state["dirty"]) == ("unknown", None) and "no checkout" in state["note"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in git_state(tmp_path)["note"]


def test_a_checkout_of_another_user_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git(tmp_path, "init", "-q")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):  # they may allow every folder
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("LANGUAGE", "de")
    monkeypatch.delenv("POSSAM_SOURCE", raising=False)
    monkeypatch.setattr(provenance_module, "_CODE", tmp_path)
    state = source_state()
    assert state["commit"] == "unknown"
    assert state["note"].endswith(f"git config --global --add safe.directory {tmp_path}")
    assert state["note"] in capsys.readouterr().err


def test_provenance_is_what_was_given_and_what_was_found() -> None:
    started = time.time() - 5
    content = provenance(
        stage="train",
        parameters={"model": {"queries": 30}},
        inputs={"z": "1" * 64, "a": "2" * 64},
        seed=3,
        started=started,
    )
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["stage"] == "train" and content["seed"] == 3
    assert content["parameters"] == {"model": {"queries": 30}}
    assert list(content["inputs"]) == ["a", "z"]
    assert 5 <= content["wall_time_s"] < 60
    parsed = datetime.fromisoformat(content["started"])
    assert abs((parsed - datetime.fromtimestamp(started, tz=UTC)).total_seconds()) <= 1
    assert content["peak_memory_mib"] > 5


def test_peak_memory_is_in_mebibytes() -> None:
    before = peak_memory_mib()
    block = bytearray(int((before + 64) * 2**20))
    block[::4096] = b"1" * len(block[::4096])
    after = peak_memory_mib()
    assert before + 64 <= after < 2 * before + 256


def test_versions_and_hardware_are_this_machines() -> None:
    versions = package_versions()
    assert versions["numpy"] == metadata.version("numpy")
    assert all(versions.values())
    machine = hardware()
    assert machine["cores"] >= machine["cores_usable"] >= 1
    assert machine["memory_gib"] > 0.2 and machine["cpu"] and isinstance(machine["gpus"], list)


def test_environment_prefers_the_projects_variable() -> None:
    both = {"POSSAM_TRACKING_URI": "http://a:1", "MLFLOW_TRACKING_URI": "http://b:2"}
    assert Environment.load(both).tracking_uri == "http://a:1"
    assert Environment.load({**both, "POSSAM_TRACKING_URI": " "}).tracking_uri == "http://b:2"
    assert Environment.load({}) == Environment(tracking_uri=DEFAULT_TRACKING_URI, slurm_job=None)
    assert Environment.load({"SLURM_JOB_ID": "12"}).slurm_job == "12"
    assert MLFLOW_DEFAULTS["MLFLOW_DISABLE_TELEMETRY"] == "true"
