"""What the other tables have beside Table 1's: labels, comparisons, agreement, units, TeX."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from possam.evaluation.metrics import METRICS
from possam.params.project import Project
from possam.reporting.measurement import Comparisons
from possam.reporting.table_tex import escape
from possam.reporting.tables import build_table, print_table
from tests.support.table_fakes import PARAMS, make_table, measured

ALL = sorted(Project("mini", folder=PARAMS).tables)


def test_the_paper_has_eight_tables() -> None:
    assert [f"table{number}" for number in range(1, 9)] == ALL


@pytest.mark.parametrize("table", ALL)
def test_every_published_row_and_number_is_there(table: str, tmp_path: Path) -> None:
    rows, text, tex, card = make_table(tmp_path, table)
    path = PARAMS / "published" / card["published_file"]
    with open(path, newline="", encoding="utf-8") as stream:
        published = list(csv.DictReader(stream))
    ours = {row["row"] for row in card["rows"] if row["source"] not in ("published", "later")}
    unpublished = ours - {line["method"] for line in published}
    shown_rows = [row for row in rows if row["row"] not in unpublished]
    assert [row["row"] for row in shown_rows] == [line["method"] for line in published]
    for row, line in zip(shown_rows, published, strict=True):
        assert row["row"] in text and escape(row["row"]) in tex
        for key in card["labels"]:
            assert row[key] == line[key]
        for column in card["columns"]:
            key = column["key"]
            shown = row[f"{key}_published"] if row["source"] == "reproduced" else row[key]
            assert shown == line[key], (row["row"], key)
            assert line[key] in text
        if row["source"] == "reproduced":
            for column in card["columns"]:
                for part in ("", "_low", "_high"):
                    assert row[column["key"] + part], "no reproduced cell is empty"


def test_a_reference_row_is_compared_with(tmp_path: Path) -> None:
    comparisons = Comparisons(
        differences={
            "Bare model": {
                "pq": {"value": -3.0, "low": -4.5, "high": -1.25},
                "map": {"value": 0.5, "low": -0.5, "high": 1.5},
            }
        },
        agreement={"pq": {"tau": 0.6, "low": 0.2, "high": 1.0, "rows": 5}},
    )
    rows, text, _, card = make_table(tmp_path, "table4", comparisons)
    assert rows[0]["pq_versus"] == "-3.0000"
    assert (rows[0]["pq_versus_low"], rows[0]["pq_versus_high"]) == ("-4.5000", "-1.2500")
    assert rows[0]["miou_versus"] == rows[1]["pq_versus"] == rows[4]["pq_versus"] == ""
    section = text[text.index("## Against + MASE (full model)") :]
    assert "| Bare model | **-3.0 [-4.5, -1.2]** |  |  | +0.5 [-0.5, +1.5] |  |" in section
    assert "does not cover chance in training." in section
    assert "| PQ | +0.60 [+0.20, +1.00] | 5 |" in section
    assert card["agreement"]["pq"]["tau"] == 0.6 and card["reference"] == "+ MASE (full model)"


def test_without_comparisons_there_are_no_empty_sections(tmp_path: Path) -> None:
    _, text, _, _ = make_table(tmp_path, "table4")
    assert "## Against" not in text and "## Agreement" not in text and "## Empty" not in text


def test_labels_say_what_a_row_is(tmp_path: Path) -> None:
    rows, text, _, _ = make_table(tmp_path, "table4")
    assert [rows[2][key] for key in ("fpn", "ldp", "iou", "mase")] == ["1", "1", "0", "0"]
    assert "| Method | FPN | LDP | IoU | MASE | Source | PQ |" in text
    assert "| + LDP | 1 | 1 | 0 | 0 | reproduced |" in text


def test_arithmetic_finds_the_slip_of_table_4_and_no_other(tmp_path: Path) -> None:
    _, text, _, card = make_table(tmp_path, "table4")
    (slip,) = card["slips"]
    assert "Bare model" in slip and "PQ 21.3 does not lie between" in slip and slip in text
    for table in ("table2", "table3", "table5", "table6", "table7", "table8"):
        assert make_table(tmp_path, table)[3]["slips"] == [], table


def test_speed_and_sizes_have_their_own_units(tmp_path: Path) -> None:
    rows, text, tex, card = make_table(tmp_path, "table8")
    fps, frozen = (10.0 + list(METRICS).index(name) for name in ("fps", "frozen_m"))
    assert "FPS is in images per second, parameters in millions" in text
    assert f"**{fps:.2f} [{fps - 1:.2f}, {fps + 2:.2f}]**" in text
    assert f"**{frozen:.1f}**<br>published 441.4" in text, "counted, not measured: no interval"
    assert rf"\textbf{{{fps:.2f}}}" in tex
    assert rows[0]["fps"] == "1.26" and rows[0]["source"] == "published"
    section = text[text.index("## Seen and unseen") :]
    assert section.count("| PosSAM (B) |") >= 1 and "Cost" in text
    assert all(run["run"].startswith("possam_") for run in card["rows"][1]["runs"].values())
    print_table(tmp_path / "table8.csv")


@pytest.mark.parametrize("table", ALL)
def test_the_terminal_stays_narrow(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_table(tmp_path, table)
    print_table(tmp_path / f"{table}.csv")
    assert max(len(line) for line in capsys.readouterr().out.splitlines()[1:]) <= 100


@pytest.mark.parametrize("table", ALL)
def test_tex_is_balanced(table: str, tmp_path: Path) -> None:
    rows, _, tex, card = make_table(tmp_path, table)
    assert tex.count("{") == tex.count("}")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2, "and its budget"
    body = tex[tex.index(r"\midrule") : tex.index(r"\bottomrule")].splitlines()[1:]
    body = [line for line in body if line != r"\midrule"]  # above later work
    columns = 1 + len(card["labels"]) + len(card["columns"])
    assert all(len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in body)
    measured_here = sum(row["source"] in ("reproduced", "training_free") for row in rows)
    assert len(body) == len(rows) + measured_here, "a line a row, and one of intervals"
    assert "synthetic" in tex
    assert "synthetic" not in make_table(tmp_path, table, scale="paper")[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A_1 & 50 %", r"A\_1 \& 50 \%"),
        ("COCO -> ADE20K", r"COCO $\rightarrow$ ADE20K"),
        ("a\\b", r"a\textbackslash{}b"),
        ("{x}^2~", r"\{x\}\textasciicircum{}2\textasciitilde{}"),
    ],
)
def test_tex_escapes(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_table_says_that_the_code_changed_during_a_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project, out = Project("mini", folder=PARAMS), tmp_path / "table1.csv"
    git = [{"commit": letter * 40, "dirty": letter == "c"} for letter in "abc"]
    changes = [
        {"steps": 40, "before": {"git": git[0]}, "after": {"git": git[1]}},
        {"steps": 90, "before": {"git": git[1]}, "after": {"git": git[2]}},
    ]
    found = {
        origin: replace(
            one, evaluations=tuple({**each, "accepted_code": changes} for each in one.evaluations)
        )
        if origin.run == "possam_b_coco"
        else one
        for origin, one in measured(project, "table1").items()
    }
    card = build_table(project, "table1", found, Comparisons(), out=out)
    own = [name for name, one in card["evaluations"].items() if "accepted_code" in one]
    assert own and all(name.startswith("possam_b_coco/seed0/") for name in own)
    print_table(out)
    expected = [
        f"Run possam_b_coco, seed 0: the code changed after step {steps}, from commit "
        f"{before * 10} to {after * 10}{changes}"
        for steps, before, after, changes in ((40, "a", "b", ""), (90, "b", "c", " with changes"))
    ]
    texts = [out.with_suffix(suffix).read_text() for suffix in (".md", ".tex")]
    texts.append(" ".join(capsys.readouterr().out.split()))
    for sentence in expected:
        assert [text.count(sentence) for text in (texts[0], texts[2])] == [1, 1]
        assert texts[1].count(escape(sentence)) == 1
