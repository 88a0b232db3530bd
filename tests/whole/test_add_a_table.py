"""docs/add-a-table.md, followed literally at smoke scale."""

import csv
import re

import pytest

from tests.support.pages import REPOSITORY, apply, commands_of, edits_of
from tests.whole.conftest import Workspace

pytestmark = pytest.mark.pipeline

PAGE = REPOSITORY / "docs/add-a-table.md"


def test_the_page_s_edits_make_its_table(finished: Workspace) -> None:
    edits = edits_of(PAGE)
    assert len(edits) == 3, "as many as the page says"
    files = {edit.file: finished.folder / edit.file for edit in edits}
    texts = {name: path.read_text() if path.exists() else None for name, path in files.items()}
    try:
        for edit in edits:
            apply(edit, finished.folder)
        printed = []
        for line in commands_of(PAGE):
            line = line.replace("mini", "smoke")
            done = finished.run("bash", "-ec", f"source .venv/bin/activate; {line}")
            printed.append(done.stdout + done.stderr)
        assert re.search(r"^evaluate +1\n", printed[1], re.MULTILINE)
        assert not re.search(r"^train ", printed[1], re.MULTILINE)
        rows = list(csv.DictReader((finished.folder / "results/smoke/table9.csv").open()))
        assert [row["row"] for row in rows] == ["as in the paper", "half", "geometric"]
        assert all(row["source"] == "reproduced" and row["pq"] for row in rows)
        assert rows[0]["pq_published"] == "26.5" and rows[1]["pq_published"] == ""
        assert "half" in printed[3]
    finally:
        for name, old in texts.items():
            if old is None:
                files[name].unlink(missing_ok=True)
            else:
                files[name].write_text(old)
        for path in (finished.folder / "results/smoke").glob("table9.*"):
            path.unlink()
        finished.snakemake("results/smoke/table1.csv")
