"""Answers of other programs: short commands, with a time limit."""

import os
import subprocess
from typing import NamedTuple


class Answer(NamedTuple):
    """What a command left: its exit code, and both streams without blanks around them."""

    code: int
    output: str
    errors: str

    @property
    def good(self) -> str | None:
        """The output of a command that succeeded; None of another."""
        return self.output if self.code == 0 else None


def ask(*command: str, seconds: float = 30.0) -> Answer:
    """Run ``command`` and wait for it, at most ``seconds``.

    A command that is missing or takes longer has the exit code -1, and ``errors`` says why. Its
    messages are the untranslated ones (``LC_ALL=C``), so that they can be told apart.
    """
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Answer(-1, "", str(error))
    return Answer(done.returncode, done.stdout.strip(), done.stderr.strip())
