"""Ctrl-C of a training on this machine: a checkpoint, then the usual exit code."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from possam import cli
from possam.launch.local_training import interrupts, train_here
from possam.training.options import SAVE_AND_END


@pytest.fixture(autouse=True)
def foreground() -> Any:
    """As in a terminal: a shell's background job would ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_asks_for_a_checkpoint_once_a_step_has_ended() -> None:
    with interrupts() as asked:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert asked() == 0
        signal.raise_signal(signal.SIGINT)
        assert asked() == SAVE_AND_END
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_process_that_ignores_ctrl_c_still_does() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts() as asked:
        asked()
        signal.raise_signal(signal.SIGINT)
        assert asked() == 0
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_training_ends_after_its_step_with_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from possam.training.checkpoint_paths import checkpoints
    from tests.training.test_together import Counting, together

    def train(*_: Any, asked: Callable[[], int], **__: Any) -> None:
        def interrupted() -> int:
            asked()
            if len(source.steps) == 3:
                signal.raise_signal(signal.SIGINT)
            return asked()

        source = Counting()
        together(tmp_path, source, asked=interrupted)

    monkeypatch.setattr("possam.stages.train.train", train)
    with pytest.raises(KeyboardInterrupt):
        train_here()
    said = "possam train: ended after step 3 of 8; its checkpoint is written\n"
    assert capsys.readouterr().err.endswith(said)
    for run in ("whole", "no_iou", "longer"):
        assert checkpoints(tmp_path / run / "seed0/checkpoints")[0].name == "step_000000003"
    assert cli.main(["train", "possam_b_coco", "--scale", "smoke"]) == 130
    assert capsys.readouterr().err.endswith("possam train: interrupted\n")


def test_ctrl_c_reaches_each_process_of_a_training_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    child = f"""
import os, signal, sys, time
rank, count = os.environ["RANK"], 0
def count_them(*_):
    global count
    count += 1
signal.signal(signal.SIGINT, count_them)
open("{tmp_path}/" + rank, "w").close()
while not count:
    time.sleep(0.01)
time.sleep(0.3)
print("interrupted", count, file=sys.stderr)
sys.exit(130 if count == 1 else 3)
"""
    command = [sys.executable, "-c", child]
    starter = f"""
import signal
from possam.launch.local_processes import run_processes
signal.signal(signal.SIGINT, signal.default_int_handler)
raise SystemExit(run_processes({command!r}, count=2))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", starter], cwd=Path(__file__).parents[2], start_new_session=True
    )
    while not all((tmp_path / rank).exists() for rank in "01"):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(60) == 130
    assert capfd.readouterr().err == "interrupted 1\n", "only that of process 0 is shown"
