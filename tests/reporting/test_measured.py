"""The results that git holds, and what the README says of them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from possam.evaluation.metrics import PER_IMAGE
from possam.params.layout import Layout
from possam.params.project import Project

REPOSITORY = Path(__file__).parents[2]
PROJECT = Project("mini", folder=REPOSITORY / "params")
TABLES = PROJECT.tables
LAYOUT = Layout(PROJECT, root=REPOSITORY)
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Column of the README's table of results: table, card's column.
SHOWN = {
    "COCO -> ADE20K": "coco_ade_pq",
    "ADE20K -> COCO": "ade_coco_pq",
}


def card(table: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAYOUT.kept / f"{table}.json").read_text(encoding="utf-8"))
    return found


def study() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LAYOUT.kept / "study.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("table", PROJECT.tables)
def test_every_reproduced_cell_is_full(table: str) -> None:
    found = card(table)
    assert found["synthetic"] and not found["comparable"]
    params = PROJECT.tables[table]
    reproduced = {row["row"]: row for row in found["rows"] if row["source"] == "reproduced"}
    assert reproduced
    for name, row in reproduced.items():
        for column in params.columns:
            if not any(key.startswith(f"{column.group}_") for key in row["cells"]):
                continue
            cell = row["cells"][column.key]
            assert cell["value"] is not None, (name, column.key)
            if column.metric in PER_IMAGE:
                assert cell["low"] <= cell["value"] <= cell["high"], (name, column.key)
                assert cell["low"] < cell["high"], (name, column.key)
                if cell["versus"] is not None:
                    assert cell["versus"]["low"] <= cell["versus"]["value"], (name, column.key)
    assert bool(found["agreement"]) == params.agreement


def test_the_readme_says_whether_they_are_of_an_older_protocol() -> None:
    def rows(table: str) -> set[str]:
        own = ("reproduced", "training_free")
        return {row["row"] for row in card(table)["rows"] if row["source"] in own}

    now = {name: {row.name for row in table.rows if row.cells} for name, table in TABLES.items()}
    older = any(rows(name) != expected for name, expected in now.items())
    assert ("before the protocol changed" in " ".join(README.split())) == older


def test_they_are_of_one_commit_that_the_readme_names() -> None:
    (commit,) = study()["commits"]
    assert study()["seeds"] == list(PROJECT.scale.seeds)
    assert commit[:7] in README


def test_the_page_is_theirs() -> None:
    page = LAYOUT.kept_report.read_text(encoding="utf-8")
    assert study()["commits"][0][:10] in page
    for table in PROJECT.tables:
        assert f'id="{table}"' in page


def test_the_readme_quotes_them() -> None:
    rows = {row["row"]: row for row in card("table1")["rows"]}
    lines = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("|")]
    heads = [line for line in lines if [cell.strip() for cell in line][1:2] == ["COCO -> ADE20K"]]
    (head,) = heads
    columns = [cell.strip() for cell in head]
    quoted = [[cell.strip() for cell in line] for line in lines if line[0].strip() in rows]
    named = {line[0]: line for line in quoted if len(line) == len(columns)}
    assert {"FC-CLIP", "PosSAM (B)", "PosSAM (L)", "PosSAM (H)"} <= named.keys()
    for name, line in named.items():
        for title, key in SHOWN.items():
            cell = rows[name]["cells"][key]
            expected = f"{cell['value']:.1f} [{cell['low']:.1f}, {cell['high']:.1f}]"
            assert line[columns.index(title)] == expected, (name, title)


def test_an_unseen_class_is_known_far_above_chance() -> None:
    """The lower bound of the full models' unseen PQ against the shuffled names' whole interval."""
    found = card("table3")
    (full,) = (row for row in found["rows"] if row["row"] == "PosSAM")
    (shuffled,) = (c for c in card("table1")["controls"] if c["condition"] == "shuffled_names")
    chance = shuffled["metrics"]["pq"]["high"]
    assert full["cells"]["pq_unseen"]["low"] > 20 * chance


def test_numbers_in_the_page_need_no_other_file() -> None:
    page = LAYOUT.kept_report.read_text(encoding="utf-8")
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("data:", "#")) for address in addresses)
