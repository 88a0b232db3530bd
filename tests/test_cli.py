"""The command line: one subcommand per stage, quick to start, one message and exit code 2."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from possam import __main__ as entry
from possam import __version__, cli
from possam.datasets.catalogue import datasets
from possam.runtime import forkserver
from possam.runtime.errors import InputError, JobFailedError

ROOT = Path(__file__).parents[1]
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
PANELS = {
    "Pipeline stages": "world download convert features train evaluate table figure report track "
    "pretrain calibrate",
    "Look and compare": "show compare ui efficiency",
    "Your own data": "predict export demo score convert-files",
    "Cluster": "jobs rehearse",
    "Project": "runs check doctor plan keep store",
}


def test_help_lists_every_command_in_the_group_of_its_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    shown: dict[str, list[str]] = {}
    for line in capsys.readouterr().out.splitlines():
        if heading := re.fullmatch(r"(\w[\w ]+):", line):
            shown[heading[1]] = []
        elif name := re.match(r"  (\w[\w-]*)  ", line):
            shown[list(shown)[-1]].append(name[1])
    assert shown.pop("Options") == []
    assert shown == {panel: names.split() for panel, names in PANELS.items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example_that_it_accepts(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    program, command, *arguments = shlex.split(shown.split("Example:\n\n")[1])
    assert (program, command) == ("possam", name)
    COMMANDS[name].make_context(name, arguments)  # refuses what it does not know


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from possam import cli; cli.main(['--help']); cli.main(['--version'])\n"
        "print({'torch', 'pandas', 'pydantic', 'mlflow', 'rich', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == [f"possam {__version__}", "set()"]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("params/x.yaml: key: bad"), 2, "possam check: params/x.yaml: key: bad\n"),
        (JobFailedError("job 3: cancelled"), 1, "possam check: job 3: cancelled\n"),
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

    monkeypatch.setattr("possam.stages.check.check", fail)
    assert cli.main(["check"]) == code
    assert capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("possam.stages.check.check", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check"])


def test_the_exit_code_of_a_command_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("possam.stages.doctor.doctor", lambda scale: 1)
    assert cli.main(["doctor", "--scale", "smoke"]) == 1


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ([], "Missing command"),
        (["nothing"], f"valid choices: {', '.join(COMMANDS)}"),
        (["train"], "Missing argument 'run'"),
        (["train", "r", "--seed", "one"], "--seed"),
        (["train", "r", "--launcher", "pbs"], "'local', 'slurm'"),
        (["train", "r", "--sede", "1"], "--seed"),
        (["convert", "coco", "test"], "'train', 'val'"),
        (["jobs", "stop"], "'list', 'tail', 'cancel'"),
    ],
)
def test_usage_errors_exit_with_2_and_show_the_choices(
    arguments: list[str], shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("convert nothing val --scale smoke", ", ".join(datasets())),
        ("table table99 --scale smoke", "table1"),
        ("check --scale nothing", "mini, paper, smoke"),
        ("predict a.jpg --words cat --out o", "no such file or folder"),
        ("predict README.md --out o", "one of --words, --words-file and --vocabulary"),
        (
            "predict README.md --words cat --out o --random-init --checkpoint w",
            "one of --checkpoint, --random-init",
        ),
        ("train possam_b_coco --launcher slurm --device cpu", "params/slurm.yaml decides it"),
        ("train possam_b_coco --launcher slurm --processes 2", "params/slurm.yaml decides it"),
        ("jobs tail", "take a run or the number of a job"),
    ],
)
def test_bad_values_exit_with_2_and_say_what_is_valid(
    line: str, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(shlex.split(line)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"possam {line.split()[0]}: ") and shown in error


def test_the_scale_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSSAM_SCALE", "nothing")
    assert cli.main(["plan"]) == 2
    assert "unknown scale 'nothing'" in capsys.readouterr().err


def complete(*words: str) -> list[str]:
    """What a shell is offered for the last of ``words``."""
    values = {"_POSSAM_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    values["COMP_WORDS"] = shlex.join(["possam", *words])
    command = [sys.executable, "-m", "possam"]
    done = subprocess.run(
        command, env={**os.environ, **values}, cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_shell_completes_commands_and_names_of_params() -> None:
    assert complete("conv") == ["convert", "convert-files"]
    assert complete("convert", "ade20k_f") == ["ade20k_full"]
    assert "possam_b_coco" in complete("train", "--scale", "smoke", "possam_b")


def test_a_reader_that_goes_away_is_no_bug() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "possam", "plan", "--scale", "paper"],
        cwd=ROOT,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert done.stderr == b"" and done.returncode == 141


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the fork server is asked; it answers with exit code 7."""
    requests: list[list[str]] = []
    monkeypatch.setenv("POSSAM_FORKSERVER", "/nowhere/jobs")
    monkeypatch.setattr(forkserver, "ask", lambda path, given: requests.append(given) or 7)
    return requests


def test_the_fork_server_gets_the_stages_that_gain(
    asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in ("train possam_b_coco --launcher local", "table table1 --scale smoke"):
        monkeypatch.setattr(sys, "argv", ["possam", *line.split()])
        assert entry.main() == 7 and asked[-1] == line.split()


@pytest.mark.parametrize(
    "line",
    [
        "train possam_b_coco --launcher slurm --device cpu",  # waits for SLURM
        "train possam_b_coco --launcher=slurm --device cpu",
        "check --scale nothing",
        "",
    ],
)
def test_other_commands_do_their_work_here(
    line: str, asked: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["possam", *line.split()])
    assert entry.main() == 2 and not asked


def test_a_job_for_the_fork_server_imports_no_command_line() -> None:
    code = (
        "import sys; from possam import __main__ as entry; from possam.runtime import forkserver\n"
        "forkserver.ask = lambda path, given: 0\n"
        "sys.argv = ['possam', 'table', 'table1']; entry.main()\n"
        "print({'typer', 'argparse', 'possam.cli', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "POSSAM_FORKSERVER": "/nowhere/jobs"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
