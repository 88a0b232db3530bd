"""Tables: nine rows as published, our cells traceable, nothing compared that cannot be compared."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from possam.evaluation.metrics import METRICS
from possam.params.project import Project
from possam.params.published import find_slips, read_published
from possam.params.tables import Origin
from possam.reporting.measurement import Comparisons, Measurement
from possam.reporting.tables import build_table, print_table
from possam.runtime.errors import InputError

PARAMS = Path(__file__).resolve().parents[2] / "params"
ROWS = ("MaskCLIP", "FreeSeg", "ODISE", "OPSNet", "MaskQCLIP")
FLOOR = "SAM + CLIP"
OURS = ("FC-CLIP", "PosSAM (B)", "PosSAM (L)", "PosSAM (H)")
LATER = ("EOV-Seg (L)", "MAFT+", "OVRCOAT", "RetCLIP")
FCCLIP = (("fcclip_coco", "ade20k"), ("fcclip_ade20k", "coco"))
Measurements = dict[Origin, Measurement]


def evaluation(origin: Origin, scale: str, base: float, seed: int = 0) -> dict[str, Any]:
    """An evaluation with metrics base, base + 1, ... in the order of METRICS."""
    values = {name: base + number for number, name in enumerate(METRICS)}
    return {
        "run": origin.run,
        "seed": seed,
        "benchmark": origin.benchmark,
        "condition": origin.condition,
        "scale": scale,
        "identity": f"identity of {'/'.join(origin)}",
        "run_identity": f"weights_{origin.run}_{seed}",
        "counts": {"images": 400},
        "variants": {
            origin.variant: {
                "metrics": values,
                "intervals": {name: [value - 1.25, value + 1.5] for name, value in values.items()},
                "check": {"panopticapi_pq": values["pq"]},
                "protocol": {"miou": "the formula", "inference": {"alpha": 0.4}},
            }
        },
    }


def measurements(scale: str) -> Measurements:
    keys = [
        (f"possam_{size}_{train}", test, "trained")
        for train, test in (("coco", "ade20k"), ("ade20k", "coco"))
        for size in "blh"
    ]
    keys += [("possam_b_coco", "ade20k", name) for name in ("untrained", "shuffled_names")]
    origins = [Origin(*key, "default") for key in keys]
    origins += [Origin(*key, "trained", "geometric") for key in FCCLIP]
    every = Project(scale, folder=PARAMS).tables["table1"].origins()
    origins += [origin for origin in every if origin not in origins]  # the floor, the budget
    return {
        origin: Measurement.of(evaluation(origin, scale, 10.0 + 5 * number), origin.variant)
        for number, origin in enumerate(origins)
    }


def part(found: Measurements, *key: str) -> dict[str, Any]:
    """The default variant's part of the evaluation behind ``key``, to be changed in origin."""
    (content,) = found[Origin(*key, "default")].parts()
    assert isinstance(content, dict)
    return content


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., tuple[list[dict[str, str]], str, dict[str, Any]]]:
    """``build(scale, found)`` -> CSV rows, Markdown, card."""

    def call(
        scale: str = "mini",
        found: Measurements | None = None,
        folder: Path = PARAMS,
        comparisons: Comparisons | None = None,
    ) -> Any:
        project = Project(scale, folder=folder)
        out = tmp_path / "table1.csv"
        build_table(
            project,
            "table1",
            measurements(scale) if found is None else found,
            Comparisons() if comparisons is None else comparisons,
            out=out,
        )
        with open(out, encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return (
            rows,
            (tmp_path / "table1.md").read_text(),
            json.loads((tmp_path / "table1.json").read_text()),
        )

    return call


def published() -> dict[str, dict[str, str]]:
    with open(PARAMS / "published" / "table1_panoptic.csv", encoding="utf-8") as stream:
        return {row["method"]: row for row in csv.DictReader(stream)}


def named(rows: list[dict[str, str]]) -> dict[str, dict[str, str]]:
    """The rows by name."""
    return {row["row"]: row for row in rows}


def test_rows_of_the_paper_then_later_work(build: Callable) -> None:
    rows, text, _ = build()
    assert tuple(row["row"] for row in rows) == (*ROWS, FLOOR, *OURS, *LATER)
    expected = ["published"] * 5 + ["training_free"] + ["reproduced"] * 4 + ["later"] * 4
    assert [row["source"] for row in rows] == expected
    assert "| RetCLIP (2026) | published later | 30.9 |" in text
    assert "work that the paper could not know" in text
    assert f"| {FLOOR} | training-free | **" in text


def test_later_work_is_marked_in_tex_and_in_the_terminal(
    build: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build()
    tex = (tmp_path / "table1.tex").read_text()
    assert r"EOV-Seg (L)$^\ddagger$ & 24.5" in tex and "Published after the paper." in tex
    rules = tex[: tex.index(r"\bottomrule")].splitlines()
    assert rules[rules.index(r"\midrule", 8) + 1].startswith("EOV-Seg"), "below a rule"
    print_table(tmp_path / "table1.csv")
    shown = capsys.readouterr().out
    assert "RetCLIP >" in shown and "> published after the paper" in shown
    assert "PosSAM (B) *" in shown and "MaskCLIP  " in shown


def test_the_error_budget_stands_below_the_table(
    build: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gain = {"value": 30.25, "low": 28.0, "high": 32.5}
    ratio = {"value": 0.5, "low": 0.45, "high": 0.55}
    compared = {"gains": {"oracle_labels": {"pq": gain}}, "ratio": {"pq": ratio}}
    _, text, card = build(comparisons=Comparisons(budget={"coco_ade": compared}))
    assert [found["group"] for found in card["budget"]] == ["coco_ade", "ade_coco"]
    lines = card["budget"][0]["lines"]
    assert list(lines) == ["measured", "ground_truth_masks", "oracle_labels", "closed_set"]
    (reference,) = (row for row in card["rows"] if row["row"] == card["reference"])
    assert lines["measured"]["pq"]["value"] == reference["cells"]["coco_ade_pq"]["value"]
    section = text[text.index("## Error budget") : text.index("## Controls")]
    assert "masks of the model, oracle labels" in section and "+30.2 [+28.0, +32.5]" in section
    assert "open/closed 0.50 [0.45, 0.55]" in section
    tex = (tmp_path / "table1.tex").read_text()
    assert "+30.2 [+28.0, +32.5]" in tex[tex.index(r"\end{tabular}") :]
    print_table(tmp_path / "table1.csv")
    shown = capsys.readouterr().out
    assert "Error budget of PosSAM (H), COCO -> ADE20K" in shown
    assert max(map(len, shown.splitlines())) <= 80
    values = json.loads((tmp_path / "table1.metrics.json").read_text())
    name = "PosSAM (H), oracle_labels, coco_ade"
    assert values[name]["pq"] == lines["oracle_labels"]["pq"]["value"]


def test_published_rows_are_kept_to_the_letter(build: Callable) -> None:
    rows, _, card = build()
    original = published()
    keys = [column["key"] for column in card["columns"]]
    assert len(keys) == 10
    for row in rows[:5]:
        assert {key: row[key] for key in keys} == {key: original[row["row"]][key] for key in keys}
        assert all(row[f"{key}_low"] == "" for key in keys)
    assert rows[0]["coco_ade_rq"] == "" and rows[3]["ade_coco_pq"] == ""


def test_reproduced_cells_have_value_interval_published_and_difference(build: Callable) -> None:
    rows, _, card = build()
    row = named(rows)["PosSAM (B)"]
    # possam_b_coco comes first: pq 10, sq 11, rq 12, ... in the order of METRICS.
    assert row["coco_ade_pq"] == "10.0000" and row["coco_ade_rq"] == "12.0000"
    assert row["coco_ade_miou"] == f"{10 + list(METRICS).index('miou'):.4f}"
    assert (row["coco_ade_pq_low"], row["coco_ade_pq_high"]) == ("8.7500", "11.5000")
    assert row["coco_ade_pq_std"] == "", "one seed has no standard deviation"
    assert row["coco_ade_pq_published"] == "26.5"
    assert row["coco_ade_pq_difference"] == "-16.5000"
    assert row["ade_coco_pq"] == "25.0000", "the run trained on ADE20K, tested on COCO"
    assert row["ade_coco_run"] == "possam_b_ade20k"
    assert row["coco_ade_run_identity"] == "weights_possam_b_coco_0"
    for line, size in zip((named(rows)[name] for name in OURS[1:]), "blh", strict=True):
        assert line["coco_ade_run"] == f"possam_{size}_coco"
        for column in card["columns"]:
            key = column["key"]
            low, value, high = (float(line[key + part]) for part in ("_low", "", "_high"))
            assert low < value < high
            difference = value - float(line[f"{key}_published"])
            assert float(line[f"{key}_difference"]) == pytest.approx(difference, abs=1e-4)


def averaged(origin: Origin, base: float) -> Measurement:
    """Two seeds around ``base``: the mean, a deviation of 0.75, an interval."""
    pair = tuple(evaluation(origin, "mini", base + step, seed) for seed, step in ((0, -1), (4, 1)))
    values = {name: base + number for number, name in enumerate(METRICS)}
    return Measurement(
        variant=origin.variant,
        evaluations=pair,
        metrics=values,
        std=dict.fromkeys(values, 0.75),
        intervals={name: [value - 2.0, value + 3.0] for name, value in values.items()},
    )


def test_with_several_seeds_cells_show_mean_and_standard_deviation(
    build: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(PARAMS, tmp_path / "params"))
    scale = folder / "scales" / "mini.yaml"
    scale.write_text(scale.read_text().replace("seeds: [0]", "seeds: [0, 4]"))
    found = {
        origin: averaged(origin, 10.0 + 5 * number)
        if origin.is_trained
        else Measurement.of(evaluation(origin, "mini", 50.0), "default")
        for number, origin in enumerate(measurements("mini"))
    }
    rows, text, card = build("mini", found, folder)
    row = named(rows)["PosSAM (B)"]
    assert (row["coco_ade_pq"], row["coco_ade_pq_std"]) == ("10.0000", "0.7500")
    assert (row["coco_ade_pq_low"], row["coco_ade_pq_high"]) == ("8.0000", "13.0000")
    assert row["coco_ade_pq_difference"] == "-16.5000"
    assert row["coco_ade_run_identity"] == "weights_possam_b_coco_0 weights_possam_b_coco_4"
    assert len(row["coco_ade_evaluation_hash"].split()) == 2
    assert "**10.0 ± 0.8 [8.0, 13.0]**<br>published 26.5 (-16.5)" in text
    assert "mean ± standard deviation over 2 trainings (seeds 0, 4)" in text
    assert "9.0000, 11.0000, equal" in text, "panopticapi's PQ of each seed"
    assert "possam_b_coco/seed4/ade20k/trained" in card["evaluations"]
    trained = [key for key in card["evaluations"] if not key.endswith("training_free")]
    assert len(trained) == 24, "twelve per seed: eight of rows, two controls, two closed sets"
    print_table(tmp_path / "table1.csv")
    shown = capsys.readouterr().out
    assert "10.0 ± 0.8" in shown and max(map(len, shown.splitlines())) <= 80


def test_a_cell_of_a_variant_says_so(build: Callable, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(PARAMS, tmp_path / "params"))
    tables = folder / "tables.yaml"
    old = "coco_ade: {run: possam_b_coco, benchmark: ade20k}"
    new = "coco_ade: {run: possam_b_coco, benchmark: ade20k, variant: ldp_only}"
    tables.write_text(tables.read_text().replace(old, new))
    found = measurements("mini")
    with pytest.raises(InputError, match=r"possam_b_coco.*trained, ldp_only.*possam evaluate"):
        build("mini", found, folder)
    origin = Origin("possam_b_coco", "ade20k", "trained", "ldp_only")
    found[origin] = Measurement.of(evaluation(origin, "mini", 60.0), "ldp_only")
    rows, text, card = build("mini", found, folder)
    row, other = (named(rows)[f"PosSAM ({size})"] for size in "BL")
    assert (row["coco_ade_pq"], row["coco_ade_variant"]) == ("60.0000", "ldp_only")
    assert (other["coco_ade_pq"], other["coco_ade_variant"]) == ("15.0000", "default")
    assert "### Benchmark `ade20k`, inference `ldp_only`" in text
    # The controls are of the default variant, and so is the trained run beside them.
    assert card["controls"][0]["metrics"]["pq"]["trained"] == 10.0


def test_metrics_are_the_cells_that_are_ours(build: Callable, tmp_path: Path) -> None:
    rows, _, card = build()
    values = json.loads((tmp_path / "table1.metrics.json").read_text())
    ours = [FLOOR, *OURS, *(control["name"] for control in card["controls"])]
    assert [name for name in values if not name.startswith("PosSAM (H), ")] == ours
    for row in (named(rows)[name] for name in (FLOOR, *OURS)):
        cells = {key: f"{value:.4f}" for key, value in values[row["row"]].items()}
        assert cells == {column["key"]: row[column["key"]] for column in card["columns"]}
    control = card["controls"][0]
    assert values[control["name"]] == {k: v["value"] for k, v in control["metrics"].items()}


def test_synthetic_scales_say_that_differences_mean_nothing(build: Callable) -> None:
    rows, text, card = build("mini")
    assert card["synthetic"] and not card["comparable"]
    assert "Synthetic data" in text and "not comparable" in text.replace("**", "").replace(
        "\n", " "
    )
    assert {row["comparable"] for row in rows} == {"false"}
    assert "10.0 [8.8, 11.5]" in text and "published 26.5 (-16.5)" in text
    assert "differences say nothing" in text


def test_the_paper_scale_compares(build: Callable) -> None:
    rows, text, _ = build("paper")
    assert "Synthetic" not in text
    assert "published 26.5 (-16.5)" in text
    assert {row["comparable"] for row in rows} == {"true"}


def test_every_published_number_is_on_the_page(build: Callable) -> None:
    _, text, card = build()
    for name, row in published().items():
        assert name in text
        for column in card["columns"]:
            if row[column["key"]]:
                assert row[column["key"]] in text
    assert "ODISE (CVPR 2023)" in text
    assert text.count("| FreeSeg (CVPR 2023) |") == 2, "once in each direction"


def test_controls_stand_beside_the_table(build: Callable) -> None:
    rows, text, card = build()
    assert [control["condition"] for control in card["controls"]] == ["untrained", "shuffled_names"]
    assert card["controls"][0]["metrics"]["pq"]["value"] == 40.0
    assert card["controls"][0]["metrics"]["pq"]["trained"] == 10.0
    assert "PosSAM (B), decoder not trained" in text and "40.0 [38.8, 41.5]<br>trained 10.0" in text
    assert not {control["name"] for control in card["controls"]} & {row["row"] for row in rows}


def test_supplement_and_panopticapi(build: Callable) -> None:
    found = measurements("mini")
    part(found, "possam_h_ade20k", "coco", "trained")["check"]["panopticapi_pq"] += 1e-9
    part(found, "possam_l_ade20k", "coco", "trained")["check"] = None
    part(found, "possam_l_ade20k", "coco", "trained")["metrics"]["pq_unseen"] = None
    _, text, card = build("mini", found)
    (run,) = (row["runs"]["coco_ade"] for row in card["rows"] if row["row"] == "PosSAM (B)")
    origin = list(METRICS).index("pq_unseen")
    assert run["supplement"]["pq_unseen"]["value"] == 10.0 + origin
    section = text[text.index("## Seen and unseen") :]
    assert "PQ_unseen" in section and "class-agnostic PQ" in section
    assert "10.0000, equal" in section
    assert section.count("DIFFERENT") == 1 and section.count("not run") == 1


def test_card_names_every_evaluation(build: Callable) -> None:
    _, text, card = build()
    assert set(card["evaluations"]) == {
        f"{origin.run}/seed0/{origin.benchmark}/{origin.condition}"
        for origin in measurements("mini")
    }
    entry = card["evaluations"]["possam_b_coco/seed0/ade20k/trained"]
    assert entry["identity"] == "identity of possam_b_coco/ade20k/trained/default"
    assert len(entry["content_hash"]) == 64 and entry["content_hash"][:12] in text
    (row,) = (row for row in card["rows"] if row["row"] == "PosSAM (B)")
    assert row["runs"]["coco_ade"]["evaluation_hash"] == [entry["content_hash"]]
    (protocol,) = (one for one in card["protocol"] if one["run"] == "possam_b_coco")
    assert protocol == {
        **{"run": "possam_b_coco", "benchmark": "ade20k", "variant": "default"},
        **{"miou": "the formula", "inference": {"alpha": 0.4}},
    }
    assert text.count("### Benchmark") == 8, "two benchmarks in two variants and two probes"


def test_building_twice_gives_the_same_bytes(build: Callable, tmp_path: Path) -> None:
    build()
    names = ("table1.csv", "table1.md", "table1.json")
    first = [(tmp_path / name).read_bytes() for name in names]
    build()
    assert first == [(tmp_path / name).read_bytes() for name in names]


def test_what_a_reader_should_know_of_a_row_stands_below_the_table(build: Callable) -> None:
    _, text, card = build()
    (note,) = card["notes"]
    assert note.startswith("FC-CLIP: ") and "25.3" in note and "25.8" in note
    assert f"## Notes\n\n- {note}" in text


def test_slips_of_the_paper_are_found_by_arithmetic(build: Callable) -> None:
    _, text, card = build()
    notes = "\n".join(card["slips"])
    assert "MaskCLIP: SQ (COCO -> ADE20K) and mIoU (COCO -> ADE20K) are both 23.7" in notes
    assert "FreeSeg: RQ (COCO -> ADE20K) and RQ (ADE20K -> COCO) are both 21.6" in notes
    assert "FreeSeg, ADE20K -> COCO: RQ 21.6 is below PQ 21.7" in notes
    assert {note.split(":")[0].split(",")[0] for note in card["slips"]} == {"MaskCLIP", "FreeSeg"}
    assert all(note in text for note in card["slips"])
    project = Project("mini", folder=PARAMS)
    rows = read_published(PARAMS / "published" / "table1_panoptic.csv", project.tables["table1"])
    assert all(find_slips(project.tables["table1"], rows[name]) == [] for name in OURS)


def test_what_is_missing_is_an_error_with_a_remedy(build: Callable, tmp_path: Path) -> None:
    for key, command in (
        (("possam_l_ade20k", "coco", "trained"), "possam evaluate possam_l_ade20k coco --seed 0"),
        (("possam_b_coco", "ade20k", "untrained"), "--condition untrained --scale mini"),
    ):
        found = measurements("mini")
        del found[Origin(*key, "default")]
        with pytest.raises(InputError, match=command):
            build("mini", found)
    found = measurements("mini")
    part(found, "possam_h_coco", "ade20k", "trained")["metrics"]["map"] = None
    with pytest.raises(InputError, match=r"possam_h_coco.*metric 'map' is missing"):
        build("mini", found)
    found = measurements("paper")
    with pytest.raises(InputError, match="scale 'paper'"):
        build("mini", found)
    found = measurements("mini")
    origin = Origin("possam_b_coco", "ade20k", "trained", "default")
    found[origin] = Measurement.of(evaluation(origin, "mini", 10.0, seed=1), "default")
    with pytest.raises(InputError, match="evaluate the run again"):
        build("mini", found)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="unknown table 'table9'; valid choices: table1"):
        build_table(
            Project("mini", folder=PARAMS),
            "table9",
            {},
            Comparisons(),
            out=tmp_path / "a.csv",
        )


def test_published_file_is_checked(tmp_path: Path) -> None:
    table = Project("mini", folder=PARAMS).tables["table1"]
    text = (PARAMS / "published" / "table1_panoptic.csv").read_text()
    path = tmp_path / "published.csv"
    with pytest.raises(InputError, match=r"published\.csv: no such file"):
        read_published(path, table)
    for old, new, message in (
        ("FreeSeg", "FreeSag", "no row for 'FreeSeg'"),
        ("16.3", "16,3%", "FreeSeg: coco_ade_pq: .* is no number"),
        ("coco_ade_sq", "sq", "column 'coco_ade_sq' is missing"),
    ):
        path.write_text(text.replace(old, f'"{new}"'))
        with pytest.raises(InputError, match=message):
            read_published(path, table)
    path.write_text("")
    with pytest.raises(InputError, match="no rows"):
        read_published(path, table)


def test_terminal_version_is_narrow_and_complete(
    build: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build()
    print_table(tmp_path / "table1.csv")
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines()) <= 80
    for name in ROWS + OURS:
        assert text.count(f"\n{name} ") == 2, name
    assert "8.8-11.5" in text and "SYNTHETIC" in text
    with pytest.raises(InputError, match="no such file"):
        print_table(tmp_path / "nowhere.csv")
