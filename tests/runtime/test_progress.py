"""Progress lines: what is done, how fast, when it ends."""

import pytest

from possam.runtime import progress
from possam.runtime.progress import Progress, duration, track


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_log_gets_plain_lines_with_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 5.0, 20.0, 40.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = Progress(40, label="train", initial=10, every=10)
    bar.update(5)  # too early for a line
    bar.update(5, "loss 1.5")
    bar.update(20)
    bar.close()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    # 10 fresh units in 20 s; 20 are left at that speed.
    assert lines[0] == "train: 20/40 it (50 %), 0.5 it/s, 20 s, 40 s left | loss 1.5"
    assert lines[1:] == ["train: 40/40 it (100 %), 0.75 it/s, 40 s"]
    assert "\r" not in "".join(lines)


def test_track_counts_what_it_yields(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), total=3, label="letters")) == ["a", "b", "c"]
    assert "letters: 3/3" in capsys.readouterr().err
