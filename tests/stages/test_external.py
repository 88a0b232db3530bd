"""External predictions in the graph."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.pipeline.codehash import module_closure
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Graph]:
    """``change(file, dotted, value)`` edits params/; the graph of a project with two systems."""
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

    def call(file: str = "", dotted: str = "", value: Any = None) -> Graph:
        if file:
            data = yaml.safe_load((folder / file).read_text())
            *parents, last = dotted.split(".")
            place = data
            for key in parents:
                place = place[key]
            place[last] = value
            (folder / file).write_text(yaml.safe_dump(data, sort_keys=False))
        return Graph()

    tables = yaml.safe_load((folder / "tables.yaml").read_text())
    (row,) = (row for row in tables["table3"]["rows"] if row["name"] == "ODISE (caption)")
    row["cells"] = {"ade": {"external": "theirs", "benchmark": "ade20k"}}
    (folder / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
    return call


def wildcards(benchmark: str = "ade20k", external: str = "theirs") -> dict[str, str]:
    return {"prefix": "smoke/", "external": external, "benchmark": benchmark}


def table3(prefix: str = "smoke/") -> dict[str, str]:
    return {"prefix": prefix, "table": "table3"}


def identity(graph: Graph, benchmark: str = "ade20k") -> str:
    return graph.identity("external", wildcards(benchmark))


def test_a_table_asks_for_one_evaluation_whatever_the_seeds(change: Callable) -> None:
    graph = change("scales/smoke.yaml", "seeds", [0, 1])
    inputs = graph.inputs("table", table3())
    expected = "results/smoke/evaluations/theirs/seed0/ade20k/external/evaluation.json"
    assert [path for path in inputs if "theirs" in path] == [expected]
    assert not any("theirs" in path for path in graph.inputs("table", table3("mini/")))


def test_inputs_are_the_test_set_and_the_training_set(change: Callable) -> None:
    data = "data/smoke/datasets"
    assert change().inputs("external", wildcards()) == [
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
    graph = change()
    graph.inputs("external", wildcards(benchmark))
    shutil.move(path, "away")
    with pytest.raises(InputError, match=expected):
        graph.inputs("external", wildcards(benchmark))
    jobs = graph.walk(["results/smoke/table3.csv"])
    assert "external" in {job.stage for job in jobs}, "a plan needs no predictions"


@pytest.mark.parametrize("name", ["unknown", "possam_b_coco"])
def test_unknown_systems_are_errors_with_the_choices(change: Callable, name: str) -> None:
    with pytest.raises(InputError, match=rf"unknown external system '{name}'.*others, theirs"):
        change().inputs("external", wildcards(external=name))


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


def test_only_the_evaluation_s_own_code_counts(change: Callable) -> None:
    (module,) = STAGES["external"].code(change().project("smoke"), wildcards())
    closure = module_closure(module)
    assert "possam.evaluation.score" in closure
    assert not {"possam.model.possam", "possam.stages.evaluate"} & set(closure)


def test_nothing_was_trained_for_curves(change: Callable) -> None:
    where = {"prefix": "smoke/", "figure": "training_curves"}
    before = change().inputs("figure", where)
    graph = change("figures.yaml", "training_curves.tables", ["table1", "table3"])
    after = graph.inputs("figure", where)
    assert "results/smoke/runs/fcclip_coco/seed0/run.json" in after
    assert not any("theirs" in path for path in (*before, *after))


def test_published_figures_and_the_table_agree_on_what_was_published(change: Callable) -> None:
    rows = yaml.safe_load(Path("params/tables.yaml").read_text())["table3"]["rows"]
    changed = [{**rows[0], "published": False}, *rows[1:]]
    graph = change("tables.yaml", "table3.rows", changed)
    with pytest.raises(InputError, match=r"has a row for 'ODISE \(caption\)'.*published: false"):
        graph.inputs("table", table3())
    changed = [{**rows[0], "name": "New"}, *rows[1:]]
    graph = change("tables.yaml", "table3.rows", changed)
    with pytest.raises(InputError, match=r"no row for 'New'.*published: false"):
        graph.inputs("table", table3())
