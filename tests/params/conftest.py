"""A copy of the parameters that a test may change."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

PARAMS = Path(__file__).resolve().parents[2] / "params"


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """``change(file, edit)`` edits a copy of params/ and returns its folder."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(PARAMS, "params"))

    def call(file: str, edit: Callable[[Any], Any]) -> Path:
        data = yaml.safe_load((folder / file).read_text())
        edit(data)
        (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))
        return folder

    return call
