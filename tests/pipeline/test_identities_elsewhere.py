"""The smoke study has the same identities under every Python, in every locale and folder."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from possam.params import layout
from possam.pipeline.codehash import PACKAGE, code_hash
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph

PROBE = """
import functools, json, sys
sys.path.insert(0, sys.argv[1])
from possam.pipeline.codehash import code_hash
from possam.runtime.files import hash_json
code_hash = functools.cache(code_hash)
jobs = json.load(open(sys.argv[2]))
for job in jobs.values():
    job["code"] = code_hash(*job["code"], device=job.pop("device"))
assert "yaml" not in sys.modules and "pydantic" not in sys.modules and "numpy" not in sys.modules
print(json.dumps({path: hash_json(job) for path, job in jobs.items()}))
"""
"""With the standard library alone: the identities of jobs, from their parameters and modules."""


@cache
def interpreters() -> dict[str, str]:
    """Version -> path, of each Python from 3.11 on that is at hand and runs."""
    folders = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    folders.append(Path.home() / ".local/share/uv/python")
    named = [shutil.which(f"python3.{minor}") for minor in range(11, 20)]
    found = [path for folder in folders for path in folder.glob("*3.*/bin/python3")]
    versions = {}
    for path in (*filter(None, named), *map(str, found)):
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run([path, "-Ic", code], capture_output=True, text=True, check=False)
        major, _, minor = done.stdout.strip().partition(".")
        if done.returncode == 0 and (int(major), int(minor)) >= (3, 11):
            versions.setdefault(done.stdout.strip(), path)
    return versions


def jobs_of_the_study(graph: Graph) -> dict[str, dict[str, object]]:
    """The first file of each job of the smoke study -> all that makes its identity."""
    tables = [layout.TABLE_CSV, layout.TRACKING]
    targets = [
        t.format(prefix="smoke/", table=n) for n in graph.project("smoke").tables for t in tables
    ]
    jobs = {}
    for job in graph.walk([*targets, layout.REPORT.format(prefix="smoke/")]):
        stage, wildcards, project = STAGES[job.stage], dict(job.wildcards), graph.project("smoke")
        jobs[job.path] = {
            "stage": job.stage,
            "parameters": stage.parameters(project, wildcards),
            "code": stage.code(project, wildcards),
            "device": "cpu" if stage.by_device else None,
        }
    return jobs


@pytest.fixture(scope="module")
def study() -> dict[str, dict[str, object]]:
    return jobs_of_the_study(Graph(folder=PACKAGE.parent / "params"))


def identities(python: str, study: dict[str, dict[str, object]], folder: Path) -> dict[str, str]:
    (folder / "study.json").write_text(json.dumps(study))
    environment = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONHASHSEED": "7", "PATH": os.defpath}
    done = subprocess.run(
        [python, "-S", "-B", "-c", PROBE, str(PACKAGE.parent), "study.json"],
        **{"cwd": folder, "env": environment, "capture_output": True, "text": True},
        check=True,
    )
    return json.loads(done.stdout)


def here(study: dict[str, dict[str, object]], tmp_path: Path, monkeypatch) -> dict[str, str]:
    """As Snakemake gets them in a folder without results."""
    (tmp_path / "params").symlink_to(PACKAGE.parent / "params")
    monkeypatch.chdir(tmp_path)
    graph = Graph()
    targets = graph.walk(study)
    return {job.path: graph.identity(job.stage, dict(job.wildcards)) for job in targets}


@pytest.mark.parametrize("version", ["this", "3.11", "3.12", "3.13", "3.14", "3.15"])
def test_the_smoke_study_has_the_same_identities(
    version: str,
    study: dict[str, dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if version != "this" and version not in interpreters():
        pytest.skip(f"Python {version} is not on this machine")
    python = sys.executable if version == "this" else interpreters()[version]
    found = identities(python, study, tmp_path)
    assert len(found) > 50 and found == here(study, tmp_path, monkeypatch)


def test_what_is_hashed_or_run_keeps_its_line_ends() -> None:
    """In a checkout where git writes CRLF."""
    root = PACKAGE.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        pytest.skip("git, or a checkout of it, is not here")
    local = [path for path in (root / "data/towers").iterdir() if path.is_file()]
    scripts = [".ci/run", "workflow/driver.sh"]
    for path in map(str, (*local, *scripts)):
        command = ["git", "-C", str(root), "check-attr", "text", "eol", "--", path]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "text: unset" in done.stdout or "eol: lf" in done.stdout, done.stdout


def test_line_ends_change_no_identity(study: dict[str, dict[str, object]], tmp_path: Path) -> None:
    """As git writes them with ``core.autocrlf`` on."""
    package = Path(shutil.copytree(PACKAGE, tmp_path / "possam"))
    shutil.copytree(PACKAGE.parent / "params", tmp_path / "params")
    for path in tmp_path.rglob("*"):
        if path.suffix in {".py", ".yaml", ".csv"}:
            lines = path.read_bytes().replace(b"\r\n", b"\n").split(b"\n")
            path.write_bytes(b"\r\n".join(lines))
    again = jobs_of_the_study(Graph(folder=tmp_path / "params"))
    assert json.dumps(again) == json.dumps(study)
    for modules in {tuple(job["code"]) for job in study.values()}:  # type: ignore[arg-type]
        assert code_hash(*modules, package=package) == code_hash(*modules)
