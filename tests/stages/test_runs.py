"""``possam runs``: what was set aside is listed, restored and removed, and only by this command."""

from pathlib import Path

import pytest

from possam.cli import main
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.locks import hold
from possam.training.run_files import RunFiles

PARAMS = Path(__file__).resolve().parents[2] / "params"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """A run with a checkpoint, beside one of older code that was set aside."""
    (tmp_path / "params").symlink_to(PARAMS)
    monkeypatch.chdir(tmp_path)
    layout = Layout(Project("smoke"))
    files = RunFiles(layout.run("gone", 1), superseded=layout.superseded("gone", 1))
    for code, step in (("old", 7), ("new", 2)):
        files.prepare({"run": "gone", "device": "cpu", "code": code})
        (files.checkpoints / f"step_{step:09d}").mkdir(parents=True)
        (files.metrics).write_text(code * 1_000_000)
    return files


def aside(files: RunFiles) -> str:
    (other,) = files.others()
    return str(other.directory)


def test_what_was_set_aside_is_listed(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    """Also of a run that ``params/`` no longer has."""
    assert main(["runs"]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["folder", "state", "device", "size", "commit"]
    folder, *values = line.split()
    assert folder == aside(files) and folder.startswith("results/smoke/superseded/gone/seed1/")
    assert values[:5] == ["step", "7", "cpu", "3.0", "MB"]
    assert main(["runs", "list", "--scale", "mini"]) == 0
    assert capsys.readouterr().out == "no run was set aside\n"


def test_a_plan_names_its_size(files: RunFiles, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "table1", "--scale", "smoke"]) == 0
    assert "trainings set aside           3.0 MB" in capsys.readouterr().out


def test_removing_removes_only_what_was_named(files: RunFiles) -> None:
    folder = Path(aside(files))
    assert main(["runs", "remove", str(folder)]) == 0
    assert not folder.exists() and files.metrics.read_text() == "new" * 1_000_000
    assert main(["runs", "remove", str(folder)]) == 2


def test_restoring_sets_the_present_run_aside(files: RunFiles) -> None:
    assert main(["runs", "restore", aside(files)]) == 0
    assert files.metrics.read_text() == "old" * 1_000_000
    assert files.held()["identity"]["code"] == "old"
    (other,) = files.others()
    assert other.metrics.read_text() == "new" * 1_000_000


def test_a_run_that_is_being_trained_is_not_replaced(
    files: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    with hold(files.directory / ".running", timeout=1):
        assert main(["runs", "restore", aside(files)]) == 2
    assert "another process trains this run" in capsys.readouterr().err
    assert files.metrics.read_text() == "new" * 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["remove"], "take folders that list prints"),
        (["list", "results"], "list takes none"),
        (["remove", "results/smoke/runs/gone/seed1"], "no run was set aside there"),
    ],
)
def test_wrong_arguments(
    files: RunFiles, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert aside(files) and files.has_work
