"""``possam jobs``: what the records hold, also on a machine without SLURM."""

from pathlib import Path

import pytest

from possam import cli
from possam.launch.records import JobRecord, RunRecords, Submission
from possam.runtime.files import write_json

PARAMS = Path(__file__).resolve().parents[2] / "params"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project on a machine that has no command at all."""
    (tmp_path / "params").symlink_to(PARAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return tmp_path


def submitted(folder: Path, run: str, job: str) -> RunRecords:
    records = RunRecords(folder / f"results/smoke/runs/{run}/seed0")
    record = JobRecord(
        scale="smoke", run=run, seed=0, identity="i", job="", name=f"possam-{run}", source="/s"
    )
    submission = Submission(job=job, time="t", why="first")
    records.write(record.with_submission(submission, name=record.name, leader="."))
    return records


def test_no_training_and_no_slurm(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["jobs"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "no SLURM trainings recorded here\n"
    assert "squeue and sacct: not on this machine" in printed.err


def test_records_are_listed_without_slurm(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submitted(bare, "possam_b_coco", "7")
    write_json(submitted(bare, "fcclip_coco", "8").directory / "run.json", {})
    assert cli.main(["jobs"]) == 0
    printed = capsys.readouterr()
    assert [line.split() for line in printed.out.splitlines()] == [
        ["scale", "run", "seed", "job", "state", "elapsed", "steps"],
        ["smoke", "fcclip_coco", "0", "8", "finished", "-", "-"],
        ["smoke", "possam_b_coco", "0", "7", "UNKNOWN", "-", "-"],
    ]
    assert "the states of jobs are unknown" in printed.err


@pytest.mark.parametrize("action", ["tail", "cancel"])
def test_what_needs_slurm_says_so(
    bare: Path, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(bare, "possam_b_coco", "7")
    assert cli.main(["jobs", action, "possam_b_coco"]) == 2
    assert f"jobs {action}: this machine has no sbatch" in capsys.readouterr().err


def script(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_with_slurm_the_state_is_the_queues(
    bare: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submitted(bare, "possam_b_coco", "7")
    script(bare, "squeue", "echo '7|possam-possam_b_coco|RUNNING|1:00|None'")
    script(bare, "sacct", "exit 1")
    monkeypatch.setenv("PATH", str(bare))
    assert cli.main(["jobs"]) == 0
    printed = capsys.readouterr()
    _, row = printed.out.splitlines()
    assert row.split() == ["smoke", "possam_b_coco", "0", "7", "RUNNING", "1:00", "-"]
    assert printed.err == ""
