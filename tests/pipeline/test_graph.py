"""The graph: a run's inputs and identity hold its own towers, parts and data set, and no others."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from possam.datasets.catalogue import datasets, module_of
from possam.model.options import ModelOptions
from possam.pipeline.codehash import code_hash
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph, Job, find_job, scale_of
from possam.runtime.errors import InputError
from possam.runtime.files import write_json

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = {"possam_b_coco": "sam_b", "two_way_9_b_coco": "sam_b", "fcclip_coco": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))


def training(run: str, prefix: str = "mini/") -> dict[str, str]:
    return {"prefix": prefix, "run": run, "seed": "0"}


def evaluation(run: str, condition: str, benchmark: str = "ade20k") -> dict[str, str]:
    return {**training(run), "benchmark": benchmark, "condition": condition}


@pytest.mark.parametrize("run", RUNS)
def test_inputs_hold_the_run_s_towers_and_no_others(folder: Path, run: str) -> None:
    graph, sam = Graph(folder=folder), RUNS[run]
    trained = graph.inputs("train", training(run))
    for inputs in (trained, graph.inputs("evaluate", evaluation(run, "trained"))):
        found = {path for path in inputs if "synthetic_sam" in path}
        assert found == ({f"data/mini/assets/synthetic_{sam}.record.json"} if sam else set())
        assert "data/mini/assets/synthetic_clip.record.json" in inputs
    features = {path.split("/")[3] for path in trained if path.startswith("data/mini/features")}
    assert features == ({"b", "clip"} if sam else {"clip"})
    paper = graph.inputs("train", training(run, prefix=""))
    assert not any("/features/" in path for path in paper)


def test_caches_of_clip_need_only_clip(folder: Path) -> None:
    graph = Graph(folder=folder)
    where = {"scale": "mini", "tower": "clip", "dataset": "coco", "split": "train"}
    inputs = graph.inputs("features", where)
    assert any("clip" in path for path in inputs) and not any("sam" in path for path in inputs)
    with pytest.raises(InputError, match=r"'xl'.*clip, b, l, h"):
        graph.inputs("features", {**where, "tower": "xl"})


@pytest.mark.parametrize("run", RUNS)
def test_another_sam_changes_no_identity(folder: Path, run: str) -> None:
    def identities() -> list[str]:
        graph = Graph(folder=folder)
        untrained = evaluation(run, "untrained", benchmark="coco")
        cache = {
            "scale": "mini",
            "tower": (RUNS[run] or "clip").removeprefix("sam_"),
            "dataset": "coco",
            "split": "train",
        }
        jobs = {"train": training(run), "evaluate": untrained, "features": cache}
        return [graph.identity(stage, wildcards) for stage, wildcards in jobs.items()]

    def swap(size: str) -> None:
        path = folder / "scales" / "mini.yaml"
        data = yaml.safe_load(path.read_text())
        data["towers"]["sam"][size]["architecture"] = "synthetic_x"
        path.write_text(yaml.safe_dump(data))

    before = identities()
    swap("l")
    assert identities() == before
    swap("b")
    changed = [one != other for one, other in zip(identities(), before, strict=True)]
    assert changed == [RUNS[run] is not None] * 3


def test_identities_count_the_modules_of_the_chosen_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a part, and of a data set's reader, in a module of its own."""
    graph = Graph(folder=folder)
    images = {"prefix": "mini/", "figure": "qualitative"}
    asked = [
        ("train", training("possam_b_coco")),
        ("evaluate", evaluation("possam_b_coco", "trained")),
        ("figure", images),
    ]
    before = [graph.identity(*one) for one in asked]
    curves = ("figure", {"prefix": "mini/", "figure": "training_curves"})
    without_models = graph.identity(*curves)
    parts = property(lambda model: ("possam.synthetic.scenes",))
    monkeypatch.setattr(ModelOptions, "modules", parts)
    after = [graph.identity(*one) for one in asked]
    assert not set(before) & set(after)
    assert graph.identity(*curves) == without_models


def test_a_result_keeps_the_device_that_made_it_until_its_code_changes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a login node, whose jobs would use the CPU, what a GPU has made is up to date."""
    monkeypatch.chdir(folder.parent)
    asked = "train", training("possam_b_coco")
    on_cpu, on_cuda = (Graph(folder=folder).identity(*asked, device=d) for d in ("cpu", "cuda"))
    assert on_cpu != on_cuda
    code = STAGES["train"].code(Graph(folder=folder).project("mini"), asked[1])
    result = Path("results/mini/runs/possam_b_coco/seed0/run.json")
    write_json(result, {"device": "cuda", "code": code_hash(*code, device="cuda")})
    for device in ("cpu", "cuda"):
        assert Graph(folder=folder).identity(*asked, device=device) == on_cuda
    write_json(result, {"device": "cuda", "code": "of another version"})
    for device, expected in (("cpu", on_cpu), ("cuda", on_cuda)):
        assert Graph(folder=folder).identity(*asked, device=device) == expected


def test_a_conversion_counts_the_module_of_its_own_data_set(folder: Path) -> None:
    project = Graph(folder=folder).project("mini")
    for name in datasets():
        code = STAGES["convert"].code(project, {"dataset": name, "split": "val"})
        assert code == ("possam.stages.convert", module_of(name))


def test_every_file_of_a_stage_is_found_again() -> None:
    values = {
        **{"scale": "mini", "prefix": "mini/", "asset": "a", "dataset": "coco", "split": "val"},
        **{"tower": "b", "run": "r", "seed": "0", "benchmark": "coco", "condition": "trained"},
        **{"external": "theirs", "system": "s", "table": "table1", "figure": "f"},
    }
    for stage in STAGES.values():
        for output in stage.outputs:
            names = re.findall(r"\{(\w+)\}", output)
            expected = Job(stage.name, tuple(sorted((name, values[name]) for name in names)))
            assert find_job(output.format_map(values)) == expected
            assert expected.scale == "mini"
            assert expected.path == stage.outputs[0].format_map(values)
    assert find_job("params/published/table1_panoptic.csv") is None


def test_scales_of_wildcards() -> None:
    assert [scale_of({"prefix": prefix}) for prefix in ("mini/", "")] == ["mini", "paper"]
    assert scale_of({"scale": "smoke"}) == "smoke"


@pytest.mark.parametrize(
    ("stage", "wildcards", "message"),
    [
        ("download", {"scale": "mini", "asset": "no"}, r"assets\.yaml: .*unknown asset 'no'"),
        ("evaluate", evaluation("possam_b_coco", "trained", "no"), r"unknown benchmark 'no'"),
        ("train", training("no"), r"unknown run 'no'"),
        ("figure", {"prefix": "mini/", "figure": "no"}, r"unknown figure 'no'"),
        ("table", {"prefix": "mini/", "table": "table99"}, r"unknown table 'table99'"),
    ],
)
def test_unknown_names_are_errors(
    folder: Path, stage: str, wildcards: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=rf"{message}; valid choices: "):
        Graph(folder=folder).inputs(stage, wildcards)


def test_a_scale_is_loaded_when_it_is_asked_for(folder: Path) -> None:
    (folder / "scales" / "paper.yaml").write_text("nonsense: true\n")
    graph = Graph(folder=folder)
    graph.inputs("train", training("possam_b_coco"))
    with pytest.raises(InputError, match=r"paper\.yaml"):
        graph.inputs("train", training("possam_b_coco", prefix=""))
