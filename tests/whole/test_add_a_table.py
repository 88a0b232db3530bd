"""docs/add-a-table.md, followed literally at smoke scale."""

import csv
import re

import pytest

from tests.whole.conftest import REPOSITORY, Workspace

pytestmark = pytest.mark.pipeline

PAGE = REPOSITORY / "docs/add-a-table.md"


def test_the_page_s_edits_make_its_table(finished: Workspace) -> None:
    text = PAGE.read_text()
    edits = re.findall(r"`(params/[\w/.]+)`:\n\n```(?:yaml|csv)\n(.*?)```", text, re.DOTALL)
    assert len(edits) == 3, "as many as the page says"
    before = {path: (finished.folder / path) for path, _ in edits}
    texts = {path: file.read_text() if file.exists() else None for path, file in before.items()}
    try:
        for path, block in edits:
            before[path].write_text(f"{texts[path] or ''}{block}")
        (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        printed = []
        for line in commands.replace("mini", "smoke").splitlines():
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
        for path, old in texts.items():
            if old is None:
                before[path].unlink(missing_ok=True)
            else:
                before[path].write_text(old)
        for path in (finished.folder / "results/smoke").glob("table9.*"):
            path.unlink()
        finished.snakemake("results/smoke/table1.csv")
