"""External predictions in the rules' graph and in dvc.yaml."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.pipeline.dvc_file import check_dvc_file, write_dvc_file
from possam.pipeline.dvc_stages import Stage, stages
from possam.pipeline.graph import Pipeline
from possam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
STAGE = "smoke-external-theirs-ade20k"


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """``change(file, dotted, value)`` edits params/; the pipeline of a project with two systems."""
    monkeypatch.chdir(tmp_path)
    Path("possam").symlink_to(ROOT / "possam")
    folder = Path(shutil.copytree(ROOT / "params", "params"))
    entry = (
        "{scale: smoke, trained_on: coco, predictions: "
        "{ade20k: theirs/ade.json, ade20k_full: theirs/full}}"
    )
    (folder / "external.yaml").write_text(f"theirs: {entry}\nothers: {entry}\n")
    for name in ("ade", "full"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "1.png").write_bytes(b"pixels")
    (tmp_path / "theirs" / "ade.json").write_text("{}")

    def call(file: str = "", dotted: str = "", value: Any = None) -> Pipeline:
        if file:
            data = yaml.safe_load((folder / file).read_text())
            *parents, last = dotted.split(".")
            place = data
            for key in parents:
                place = place[key]
            place[last] = value
            (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))
        return Pipeline()

    tables = yaml.safe_load((folder / "tables.yaml").read_text())
    (row,) = (row for row in tables["table3"]["rows"] if row["name"] == "ODISE (caption)")
    row["cells"] = {"ade": {"external": "theirs", "benchmark": "ade20k"}}
    (folder / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
    return call


def identity(plan: Pipeline, benchmark: str = "ade20k") -> str:
    return plan.identity("external", "smoke", external="theirs", benchmark=benchmark)


def test_a_table_asks_for_one_evaluation_whatever_the_seeds(change: Callable) -> None:
    plan = change("scales/smoke.yaml", "seeds", [0, 1])
    inputs = plan.table_inputs("smoke/", "table3")
    wanted = "results/smoke/evaluations/theirs/seed0/ade20k/external/evaluation.json"
    assert [path for path in inputs if "theirs" in path] == [wanted]
    assert not any("theirs" in path for path in plan.table_inputs("mini/", "table3"))


def test_inputs_are_the_test_set_and_the_training_set(change: Callable) -> None:
    data = "data/smoke/datasets"
    assert change().external_inputs("smoke/", "theirs", "ade20k") == [
        f"{data}/ade20k_val/manifest.json",
        f"{data}/coco_train/manifest.json",
    ]


@pytest.mark.parametrize(
    ("path", "benchmark", "expected"),
    [
        (
            "theirs/ade.json",
            "ade20k",
            r"theirs\.predictions\.ade20k: theirs/ade\.json: no such JSO",
        ),
        ("theirs/ade", "ade20k", r"theirs\.segmentations\.ade20k: theirs/ade: no such folder of"),
        ("theirs/full", "ade20k_full", r"theirs\.predictions\.ade20k_full: theirs/full: no such"),
    ],
)
def test_what_is_missing_stops_before_any_job(
    change: Callable, path: str, benchmark: str, expected: str
) -> None:
    plan = change()
    plan.external_inputs("smoke/", "theirs", benchmark)
    shutil.move(path, "away")
    with pytest.raises(InputError, match=expected):
        plan.external_inputs("smoke/", "theirs", benchmark)
    assert STAGE in stages(plan, "smoke"), "DVC's stages can be written where predictions are not"


@pytest.mark.parametrize("name", ["unknown", "possam_b_coco"])
def test_unknown_systems_are_reported(change: Callable, name: str) -> None:
    with pytest.raises(InputError, match=rf"unknown external system '{name}'.*others, theirs"):
        change().external_inputs("smoke/", name, "ade20k")


def test_content_numbering_and_settings_decide_and_the_place_does_not(change: Callable) -> None:
    first = identity(change())
    shutil.copytree("theirs", "moved")
    moved = {"ade20k": "moved/ade.json", "ade20k_full": "moved/full"}
    assert identity(change("external.yaml", "theirs.predictions", moved)) == first
    assert identity(change("external.yaml", "others.trained_on", "ade20k")) == first
    assert identity(change("scales/smoke.yaml", "inference.alpha", 0.1)) == first
    found = {first, identity(change(), "ade20k_full")}
    found.add(identity(change("external.yaml", "theirs.category_ids", "upstream")))
    found.add(identity(change("external.yaml", "theirs.trained_on", "ade20k")))
    found.add(identity(change("scales/smoke.yaml", "evaluation.bootstrap_samples", 7)))
    Path("moved/ade/1.png").write_bytes(b"others")
    found.add(identity(change()))
    assert len(found) == 6


def naming(found: dict[str, Stage], key: str) -> set[str]:
    return {
        name
        for name, stage in found.items()
        for path, keys in stage.params.items()
        if path.endswith("external.yaml") and key in keys
    }


def test_dvc_knows_predictions_entry_and_code(change: Callable) -> None:
    found = stages(change(), "smoke")
    stage = found[STAGE]
    folder = "results/smoke/evaluations/theirs/seed0/ade20k"
    assert stage.targets == (f"{folder}/external/evaluation.json",)
    assert folder in stage.stored and len(stage.stored) == 2
    assert {"theirs/ade.json", "theirs/ade", "possam/stages/external.py"} < set(stage.deps)
    assert {"data/smoke/datasets/ade20k_val", "data/smoke/datasets/coco_train"} < set(stage.deps)
    assert "possam/model" not in stage.deps and "possam/stages/evaluate.py" not in stage.deps
    assert stage.params == {
        "params/benchmarks.yaml": ("ade20k",),
        "params/external.yaml": ("theirs",),
        "params/scales/smoke.yaml": ("evaluation",),
    }
    assert naming(found, "theirs") == {STAGE} and naming(found, "others") == set()
    assert f"{folder}/external" in found["smoke-table3"].deps
    assert not any("theirs" in dep for dep in found["smoke-table2"].deps)
    assert not any("theirs" in name for name in stages(change(), "mini"))


def test_nothing_was_trained_for_curves(change: Callable) -> None:
    name = "smoke-figure-training_curves"
    before = stages(change(), "smoke")[name].deps
    after = stages(change("figures.yaml", "training_curves.tables", ["table1", "table3"]), "smoke")
    assert "results/smoke/runs/fcclip_coco/seed0" in after[name].deps
    assert not any("theirs" in dep for dep in (*before, *after[name].deps))


def test_dvc_s_file_says_when_a_system_is_new(change: Callable) -> None:
    write_dvc_file(change(), ["smoke"])
    check_dvc_file(change())
    cells = {"ade": {"external": "others", "benchmark": "ade20k"}}
    row = {"name": "Others", "published": False, "cells": cells}
    rows = yaml.safe_load(Path("params/tables.yaml").read_text())["table3"]["rows"]
    plan = change("tables.yaml", "table3.rows", [*rows, row])
    with pytest.raises(InputError, match="possam dvc"):
        check_dvc_file(plan)
    write_dvc_file(plan, None)
    check_dvc_file(plan)
    assert "smoke-external-others-ade20k" in Path("dvc.yaml").read_text()


def test_published_figures_and_the_table_agree_on_what_was_published(change: Callable) -> None:
    rows = yaml.safe_load(Path("params/tables.yaml").read_text())["table3"]["rows"]
    changed = [{**rows[0], "published": False}, *rows[1:]]
    plan = change("tables.yaml", "table3.rows", changed)
    with pytest.raises(InputError, match=r"has a row for 'ODISE \(caption\)'.*published: false"):
        plan.table_inputs("smoke/", "table3")
    changed = [{**rows[0], "name": "New"}, *rows[1:]]
    plan = change("tables.yaml", "table3.rows", changed)
    with pytest.raises(InputError, match=r"no row for 'New'.*published: false"):
        plan.table_inputs("smoke/", "table3")
