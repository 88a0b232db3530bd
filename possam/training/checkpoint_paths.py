"""Where the checkpoints of a run lie: directories ``step_<finished steps>``. Loads no PyTorch."""

import re
from pathlib import Path

_NAME = re.compile(r"step_(\d{9})")


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of ``step`` finished steps."""
    return folder / f"step_{step:09d}"


def checkpoints(folder: Path) -> list[Path]:
    """Those that are complete, newest first; their content is not checked."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if _NAME.fullmatch(path.name)), reverse=True)


def finished_steps(folder: Path) -> int:
    """Steps of the newest checkpoint; 0 without checkpoints."""
    return max((int(path.name.removeprefix("step_")) for path in checkpoints(folder)), default=0)
