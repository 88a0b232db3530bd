"""The short form of the fuzzing: the same hostile inputs in every run of the suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {
    "coco": 200, "coco-images": 100, "predictions": 200, "instances": 200, "saved-maps": 100,
    "manifest": 300, "class-names": 400,
    "png": 400, "jpeg": 300, "mat": 400, "masks": 400, "checkpoint": 200, "sam": 60, "yaml": 60,
}  # fmt: skip
"""Inputs by reader: what takes a few seconds."""


@pytest.mark.slow
@pytest.mark.parametrize("reader", COUNTS)
def test_hostile_files_are_refused_by_name_or_accepted_by_every_stage(
    reader: str, tmp_path: Path
) -> None:
    command = (sys.executable, "-m", "tests.fuzz", reader, "--count", str(COUNTS[reader]))
    done = subprocess.run(
        (*command, "--minutes", "60", "--keep", str(tmp_path / "kept")),
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    faults = [path.read_text() for path in tmp_path.glob("kept/*/fault.txt")]
    assert done.returncode == 0 and not faults, (done.stdout, done.stderr, *faults[:3])
    found = re.search(r"(\d+) inputs.* (\d+) refused, (\d+) accepted, 0 faults", done.stdout)
    assert found is not None and int(found[1]) == COUNTS[reader] and min(map(int, found.groups()))
