"""docs/change-the-model.md, followed literally at smoke scale."""

import pytest

from possam.runtime.files import read_json
from tests.support.pages import REPOSITORY, apply, commands_of, edits_of
from tests.whole.conftest import Workspace, removing_what_is_made

pytestmark = pytest.mark.pipeline

PAGE = REPOSITORY / "docs/change-the-model.md"
REGISTRY = "possam/model/registry.py"


def test_the_page_s_pooling_is_trained_and_nothing_else(finished: Workspace) -> None:
    edits = edits_of(PAGE)
    assert len(edits) == 3, "as many as the page says"
    new, line, run = edits
    folder = finished.folder
    texts = {name: (folder / name).read_text() for name in (line.file, run.file)}
    try:
        apply(new, folder)
        apply(line, folder, below="POOLINGS = {")
        apply(run, folder)
        printed = []
        with removing_what_is_made(finished):
            for command in commands_of(PAGE):
                command = command.replace("mini", "smoke")
                done = finished.run("bash", "-ec", f"source .venv/bin/activate; {command}")
                printed.append(done.stdout + done.stderr)
            trained = read_json(folder / "results/smoke/runs/mean_pooling/seed0/run.json")
            assert trained["parameters"]["model"]["pooling"] == "mean"
            assert "Nothing to be done" in printed[-1]
    finally:
        (folder / new.file).unlink(missing_ok=True)
        for name, text in texts.items():
            (folder / name).write_text(text)
