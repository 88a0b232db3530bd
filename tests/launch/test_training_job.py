"""What SLURM's signals ask of a training."""

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from possam.launch import training_job
from possam.launch.training_job import Signals
from possam.training.options import SAVE, SAVE_AND_END


@pytest.fixture
def by_submitit() -> Iterator[list[int]]:
    """What submitit's handler, which a job finds in place, was called with."""
    calls: list[int] = []

    def handler(number: int, _: FrameType | None) -> None:
        calls.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, handler)
    yield calls
    for number, old in before.items():
        signal.signal(number, old)


def test_the_warning_before_the_time_limit_waits_for_a_step(by_submitit: list[int]) -> None:
    signals = Signals()
    assert signals() == 0
    os.kill(os.getpid(), signal.SIGUSR2)
    assert by_submitit == []
    assert (signals(), signals()) == (SAVE_AND_END, 0)


def test_before_the_first_step_has_ended_submitit_acts_at_once(by_submitit: list[int]) -> None:
    Signals()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert by_submitit == [signal.SIGUSR2]


def test_a_job_that_is_to_be_killed_saves_and_goes_on(by_submitit: list[int]) -> None:
    signals = Signals()
    os.kill(os.getpid(), signal.SIGTERM)
    assert (signals(), signals()) == (SAVE, 0)
    # The stronger order stays.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(os.getpid(), number)
    assert signals() == SAVE_AND_END


def test_after_the_checkpoint_submitit_puts_the_job_back(
    by_submitit: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(training_job.time, "sleep", waited.append)
    Signals().requeue()
    # A process that submitit does not end is killed with the job.
    assert by_submitit == [signal.SIGUSR2] and len(waited) == 1
