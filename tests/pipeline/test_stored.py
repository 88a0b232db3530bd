"""``stored/`` holds links to what is finished: what DVC does to it never touches a result."""

import json
import os
import shutil
from pathlib import Path

import pytest

from possam.params.layout import RUN_LOCK
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.stored import bring_back, store
from possam.runtime.files import read_json, sha256_file, write_json
from possam.runtime.locks import hold

PARAMS = Path(__file__).resolve().parents[2] / "params"
RUN = Path("results/mini/runs/possam_b_coco/seed0")
DATASET = Path("data/mini/datasets/coco_val")
ASSETS = Path("data/mini/assets")
RAW = Path("data/mini/raw/photos")
STORED_RUN = Path("stored/mini/runs/possam_b_coco/seed0")
SUPERSEDED = Path("results/mini/superseded/possam_b_coco/seed0")
UNITS = (RUN / "weights.safetensors", DATASET / "panoptic/1.png", ASSETS / "a.zip", RAW / "1.jpg")


def write_run(folder: Path, name: str, *, identity: str = "?", checkpoint: bool = True) -> None:
    """A finished run of hash ``name`` that Snakemake knows under ``identity``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "identity.json", {"hash": name, "identity": {}, "accepted_code": []})
    (folder / "weights.safetensors").write_text(name)
    write_json(folder / "training.json", {"identity": name})
    write_json(folder / "run.json", {"identity": name})
    record = {"params": [repr(identity)], "endtime": (folder / "run.json").stat().st_mtime}
    digest = sha256_file(folder / "run.json")
    write_json(folder / "run.snakemake", {"sha256": digest, "record": record})
    if checkpoint:
        step = folder / "checkpoints/step_000000002"
        write_json(step / "manifest.json", {"step": 2})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(RUN, "first")
    write_json(DATASET / "manifest.json", {})
    write_json(ASSETS / "photos.record.json", {"file": "a.zip"})
    for path in UNITS[1:]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)


@pytest.fixture
def project() -> Project:
    return Project("mini", folder=PARAMS)


@pytest.fixture
def graph(project: Project) -> Graph:
    return Graph(folder=PARAMS, project=project)


def wanted(graph: Graph) -> str:
    """The identity that Snakemake would give the run."""
    return graph.identity("train", {"prefix": "mini/", "run": "possam_b_coco", "seed": "0"})


def live() -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for root in ("data", "results")
        for path in Path(root).rglob("*")
        if path.is_file()
    }


def test_what_is_finished_is_linked_without_checkpoints(project: Project) -> None:
    begun = RUN.with_name("seed1")
    write_json(begun / "identity.json", {"hash": "begun"})
    write_json(begun / "checkpoints/step_000000001/manifest.json", {})
    store(project)
    for path in UNITS:
        inner = path.relative_to("results/mini" if path.parts[0] == "results" else "data/mini")
        assert os.path.samefile(path, Path("stored/mini", inner))
    names = {path.name for path in Path("stored").rglob("*")}
    assert not names & {"checkpoints", "seed1", RUN_LOCK}
    shutil.rmtree(DATASET)
    store(project)
    assert not Path("stored/mini/datasets").exists(), "what is gone is not stored"


@pytest.mark.parametrize("damage", ["removed", "emptied", "overwritten"])
def test_whatever_happens_to_the_store_results_stay(project: Project, damage: str) -> None:
    store(project)
    before = live()
    if damage == "removed":
        shutil.rmtree("stored")
    for path in [path for path in Path().glob("stored/**/*") if path.is_file()]:
        path.unlink()
        if damage == "overwritten":  # DVC replaces files, it does not write into them
            path.write_text("{}" if path.suffix == ".json" else "of another commit")
    assert live() == before


def test_a_clone_gets_all_that_dvc_pulled(project: Project, graph: Graph) -> None:
    store(project)
    before = live()
    for made in ("data", "results", ".possam"):
        shutil.rmtree(made)
    bring_back(graph, "mini")
    left_out = {path for path in before if "checkpoints" in path.parts}
    assert left_out and live() == {k: v for k, v in before.items() if k not in left_out}


def test_what_the_user_removes_stays_removed(project: Project, graph: Graph) -> None:
    store(project)
    shutil.rmtree(RUN)
    bring_back(graph, "mini")
    assert not RUN.exists()
    shutil.rmtree(STORED_RUN)
    write_run(STORED_RUN, "pulled", checkpoint=False)  # until DVC brings another one
    bring_back(graph, "mini")
    assert read_json(RUN / "run.json") == {"identity": "pulled"}


@pytest.mark.parametrize("fits", [True, False])
def test_a_run_of_the_present_parameters_takes_the_place_of_another(
    project: Project, graph: Graph, fits: bool
) -> None:
    store(project)
    before = live()
    shutil.rmtree(STORED_RUN)
    write_run(STORED_RUN, "second", identity=wanted(graph) if fits else "?", checkpoint=False)
    bring_back(graph, "mini")
    if not fits:
        assert live() == before
        return
    assert read_json(RUN / "run.json") == {"identity": "second"}
    aside = SUPERSEDED / "first"
    assert (aside / "weights.safetensors").read_text() == "first"
    assert (aside / "checkpoints/step_000000002/manifest.json").is_file()


def test_a_run_that_fits_is_not_replaced(project: Project, graph: Graph) -> None:
    write_run(RUN, "first", identity=wanted(graph))
    store(project)
    before = live()
    shutil.rmtree(STORED_RUN)
    write_run(STORED_RUN, "second", identity=wanted(graph), checkpoint=False)
    bring_back(graph, "mini")
    assert live() == before


def test_a_training_under_way_is_left_alone(project: Project, graph: Graph) -> None:
    store(project)
    shutil.rmtree(STORED_RUN)
    write_run(STORED_RUN, "pulled", identity=wanted(graph), checkpoint=False)
    for name in ("run.json", "weights.safetensors", "training.json"):
        (RUN / name).unlink()
    before = live()
    with hold(RUN / RUN_LOCK, timeout=1.0):
        bring_back(graph, "mini")
    (RUN / RUN_LOCK).unlink()
    assert live() == before


def test_links_into_a_cache_of_dvc_become_files(project: Project, graph: Graph) -> None:
    store(project)
    weights, cache = STORED_RUN / "weights.safetensors", Path("cache/files/md5/ab/cd").absolute()
    cache.parent.mkdir(parents=True)
    weights.rename(cache)
    weights.symlink_to(cache)
    store(project)
    assert weights.is_symlink(), "DVC's link is as good"
    for made in ("data", "results", ".possam"):
        shutil.rmtree(made)
    bring_back(graph, "mini")
    shutil.rmtree("cache")  # as `dvc gc` does
    assert (RUN / "weights.safetensors").read_text() == "first"


def test_without_hard_links_files_are_copied(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    store(project)
    copy = STORED_RUN / "weights.safetensors"
    assert copy.read_text() == "first" and not os.path.samefile(copy, RUN / copy.name)
    time = copy.stat().st_mtime_ns
    store(project)
    assert copy.stat().st_mtime_ns == time, "equal files are not copied again"


def test_links_to_a_data_root_stay_links(project: Project, graph: Graph) -> None:
    Path("root/val2017").mkdir(parents=True)
    (RAW / "val2017").symlink_to(Path("root/val2017").absolute())
    store(project)
    shutil.rmtree("data")
    Path(".possam/stored/mini.json").write_text(json.dumps({}))
    bring_back(graph, "mini")
    assert os.readlink(RAW / "val2017") == str(Path("root/val2017").absolute())
