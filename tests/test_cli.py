"""The command line: one subcommand a stage, quick to start, one message and exit code 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from possam import cli
from possam.runtime.errors import InputError

STAGES = {
    *(
        "check",
        "world",
        "download",
        "plan",
        "doctor",
        "convert",
        "convert-files",
        "features",
        "train",
    ),
    *("evaluate", "score", "table", "figure", "show", "report", "track", "ui", "predict"),
    *("keep", "jobs", "compare"),
    *("efficiency", "pretrain"),
}


def test_help_lists_one_subcommand_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    listed = capsys.readouterr().out.split("STAGE\n")[1]
    found = {line.split()[0] for line in listed.splitlines() if line[4:5].strip()}
    assert stop.value.code == 0 and found == STAGES


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_explains_itself(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([stage, "--help"])
    assert stop.value.code == 0 and stage in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from possam import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'pandas', 'pydantic', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("params/x.yaml: key: bad"), 2, "possam check: params/x.yaml: key: bad\n"),
        (KeyboardInterrupt(), 130, "possam check: interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_check", fail)
    assert cli.main(["check"]) == code
    assert capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cli, "_check", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check"])


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nothing"], ["train"], ["convert", "coco", "test"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 2


def test_a_reader_that_goes_away_is_no_bug() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "possam.cli", "plan", "--scale", "paper"],
        cwd=Path(__file__).parents[1],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b"" and done.returncode == 141


def test_a_training_that_is_submitted_waits_outside_the_fork_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSSAM_FORKSERVER", "/nowhere/jobs")
    asked: list[object] = []
    monkeypatch.setattr(cli.forkserver, "ask", lambda *given: asked.append(given) or 0)
    submitted = ["train", "possam_b_coco", "--launcher", "slurm", "--device", "cpu"]
    assert cli.main(submitted) == 2
    assert "params/slurm.yaml says it" in capsys.readouterr().err
    assert not asked
    assert cli.main(["train", "possam_b_coco"]) == 0
    assert len(asked) == 1
