"""``workflow/driver.sh``, run by hand: Snakemake and scontrol are scripts that note their calls."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.sessions import signal_session

SCRIPT = Path(__file__).resolve().parents[2] / "workflow/driver.sh"
TARGET = "results/table1.csv"

# The command that Snakemake runs is interrupted with it, as in a terminal.
SNAKEMAKE = """#!/bin/bash
echo "snakemake $*" >> calls
[ "$1" = --unlock ] && exit 0
[ -f fails ] && exit 3
[ -f succeeds ] && exit 0
trap 'echo "Snakemake is interrupted" >> calls; exit 1' INT
(trap 'echo "its command is interrupted" >> calls; exit 130' INT; while true; do sleep 0.1; done) &
echo ready >> calls
wait
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    commands = tmp_path / ".venv/bin"
    commands.mkdir(parents=True)
    for name, text in {
        "snakemake": SNAKEMAKE,
        "scontrol": '#!/bin/sh\necho "scontrol $*" >> calls\ntest ! -f forbidden\n',
    }.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def begin(**variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", SCRIPT, TARGET],
            cwd=tmp_path,
            env={**os.environ, "SLURM_JOB_ID": "7", **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # As SLURM starts jobs. Children of a shell's background job would ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        signal_session(process.pid, signal.SIGKILL)
        process.wait()


def calls(folder: Path, last: str) -> list[str]:
    """What was noted, once ``last`` is."""
    deadline = time.monotonic() + 60
    while True:
        lines = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
        if last in lines:
            return lines
        assert time.monotonic() < deadline, lines
        time.sleep(0.05)


@pytest.mark.parametrize(("name", "code"), [("succeeds", 0), ("fails", 3)])
def test_the_job_ends_as_snakemake_does(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, name: str, code: int
) -> None:
    (tmp_path / name).touch()
    assert start().wait(60) == code
    assert calls(tmp_path, last := f"snakemake {TARGET} --profile slurm") == [last]


def test_before_its_time_limit_it_interrupts_snakemake_and_puts_itself_back(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(SLURM_RESTART_COUNT="1")
    # An attempt before may have left its lock.
    assert calls(tmp_path, "ready")[0] == f"snakemake --unlock {TARGET} --profile slurm"
    process.send_signal(signal.SIGUSR1)
    printed, _ = process.communicate(timeout=60)
    assert "Snakemake has ended, trainings go on" in printed
    for line in ("Snakemake is interrupted", "its command is interrupted", "scontrol requeue 7"):
        calls(tmp_path, line)


def test_a_cluster_that_forbids_to_requeue(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    (tmp_path / "forbidden").touch()
    process = start()
    calls(tmp_path, "ready")
    process.send_signal(signal.SIGUSR1)
    assert "type the same sbatch line again" in process.communicate(timeout=60)[0]
    assert process.returncode == 1
