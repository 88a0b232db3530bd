"""Progress: what is done, how fast, when it ends; a bar on a terminal, lines in a log."""

import io

import pytest

from possam.runtime import progress
from possam.runtime.progress import Progress, duration, track


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_one_line_per_update_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 20.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = Progress(40, label="train", unit="steps", initial=10, every=10)
    bar.update(5)  # too early for a line
    bar.update(5, "loss 1.5, 2.0 GiB")
    bar.update(20)
    bar.close()
    bar.close()
    # 10 fresh steps in 20 s; the 20 that are left take 40 s at that speed.
    assert capsys.readouterr().err.splitlines() == [
        "train:  50% 20/40 [00:20<00:40,  2.00s/steps, loss 1.5, 2.0 GiB]",
        "train: 100% 40/40 [00:40<00:00,  1.33s/steps]",
    ]


def test_work_without_a_known_end_and_an_interruption_show(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyError), Progress(0, label="unpack", unit="MB") as bar:
        bar.update(3)
        raise KeyError
    line = capsys.readouterr().err
    assert line.startswith("unpack: 3MB [") and line.endswith(", stopped]\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(4, label="train", unit="steps", initial=1) as bar:
        bar.update(3, "loss 1.5")
    shown = terminal.getvalue()
    assert shown.count("\n") == 1 and "\r" in shown
    assert "4/4" in shown.split("\r")[-1] and "loss 1.5" in shown.split("\r")[-1]
    assert bar.done == 4


def test_track_counts_what_it_yields(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), total=3, label="letters")) == ["a", "b", "c"]
    assert "letters: 100% 3/3" in capsys.readouterr().err
