"""A training in this process, which Ctrl-C ends after a step, with a checkpoint."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from possam.training.options import SAVE_AND_END


def train_here(*arguments: Any, **options: Any) -> None:
    """Train as :func:`possam.stages.train.train`, with its arguments except ``asked``.

    Raises:
        KeyboardInterrupt: Ctrl-C. Checkpoints are written if a step had ended before it, and if
            there was no second Ctrl-C.
    """
    from possam.stages.train import train
    from possam.training.loop import EndedEarlyError

    with interrupts() as asked:
        try:
            train(*arguments, **options, asked=asked)
        except EndedEarlyError as error:
            print(f"possam train: {error}", file=sys.stderr)
            raise KeyboardInterrupt from error


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """What Ctrl-C asks of a training, as its loop asks after each step: to save and to end.

    Until the first step has ended there is nothing to save, and Ctrl-C acts at once; so does a
    second one. A process that ignores Ctrl-C, such as a script's background job, still does.
    """
    began = False
    asked = 0

    def ask() -> int:
        nonlocal began
        began = True
        return asked

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked or not began:
            raise KeyboardInterrupt
        asked = SAVE_AND_END

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, end)
    try:
        yield ask
    finally:
        signal.signal(signal.SIGINT, before)
