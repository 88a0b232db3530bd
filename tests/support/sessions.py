"""Signals for all processes of a session, without the commands of procps."""

import contextlib
import os
from pathlib import Path


def signal_session(session: int, number: int) -> None:
    """Send signal ``number`` to every process of ``session`` (its leader's process id)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # Fields after the name, which may have blanks: state, parent, group, session.
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(stat.parent.name), number)
