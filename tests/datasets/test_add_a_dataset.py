"""``docs/add-a-dataset.md``, followed literally; and scales that lack the data of a benchmark."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from possam.datasets.catalogue import UpstreamDataset, datasets
from possam.params.data import load_data
from possam.params.figures import find_figure, load_figures
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import make_plan, resolve_targets
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.stages.download import download_assets
from tests.support.layouts import save_photo
from tests.support.pages import REPOSITORY, apply, commands_of, edits_of

PAGE = REPOSITORY / "docs" / "add-a-dataset.md"


def write_release(folder: Path) -> None:
    """Three images of 128 x 128 pixels: road 1 below building 2, with a void stripe."""
    labels = np.ones((128, 128), np.uint8)
    labels[:64] = 2
    labels[:4] = 0
    for name in ("a", "b", "c"):
        save_photo(folder / f"images/val/{name}.jpg", 128, 128, seed=ord(name))
        (folder / "labels/val").mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(folder / f"labels/val/{name}.png")
    with zipfile.ZipFile(folder / "street.zip", "w") as archive:
        for path in sorted(folder.glob("*/val/*")):
            archive.write(path, path.relative_to(folder))
    (folder / "street.txt").write_text("1:road,street\n2:building\n")


@pytest.mark.pipeline
def test_the_page_is_followed_literally(tmp_path: Path) -> None:
    edits = edits_of(PAGE)
    assert len({edit.file for edit in edits}) == len(edits) == 4, "a new file, three of params/"
    for name in ("params", "workflow", "profiles", "possam", "data/towers"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=ignored)
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy2(REPOSITORY / name, tmp_path / name)
    write_release(tmp_path / "upstream")
    for edit in edits:
        apply(edit, tmp_path, below="assets:" if "scales" in edit.file else None)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "POSSAM_SCALE": "smoke"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    commands = commands_of(PAGE)
    assert [line.split()[0] for line in commands] == ["possam", "snakemake", "snakemake"]
    for line in commands:
        if line.startswith("possam"):  # the copy's own code
            line = line.replace("possam", f"{sys.executable} -m possam.cli", 1)
        done = subprocess.run(
            shlex.split(line), cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    manifest = read_json(tmp_path / "data/smoke/datasets/street_val/manifest.json")
    pixels = manifest["histogram"]["pixels"]
    assert (manifest["name"], pixels) == ("street", [3 * 64 * 128, 3 * 60 * 128])
    assert manifest["histogram"]["void_pixels"] == 3 * 4 * 128
    result = read_json(tmp_path / Path(commands[-1].split()[-1]))
    assert (result["counts"]["images"], result["counts"]["classes"]) == (3, 2)
    assert set(result["variants"]["default"]["metrics"]) == {"miou", "miou_union"}


Edit = Callable[[str, Callable[[dict], None]], None]


@pytest.fixture
def street(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Edit:
    """In a copy of the parameters: a data set, its assets and benchmark, a table and figures; only
    the scale ``paper`` has its data. Changes a file of the copy.
    """
    declared = UpstreamDataset(
        images={"val": 3}, metrics=("semantic",), read=lambda parts, split: pytest.fail("read"),
        roles={"archive": "street", "class_names": "street_class_names"},
    )  # fmt: skip
    monkeypatch.setitem(datasets(), "street", declared)
    shutil.copytree(REPOSITORY / "params", tmp_path / "params")
    monkeypatch.chdir(tmp_path)

    def edit(file: str, change: Callable[[dict], None]) -> None:
        data = yaml.safe_load(Path("params", file).read_text())
        change(data)
        Path("params", file).write_text(yaml.safe_dump(data, sort_keys=False))

    roles = ("street", "street_class_names")
    asset = {"urls": ["file:street"], "licence": "none"}
    edit("assets.yaml", lambda d: d.update({role: {"file": role, **asset} for role in roles}))
    edit("scales/paper.yaml", lambda d: d["assets"].update({role: role for role in roles}))
    entry = {"dataset": "street", "split": "val", "metrics": ["semantic"]}
    edit("benchmarks.yaml", lambda d: d.update(street=entry))
    cell = {"run": "possam_h_coco", "benchmark": "street"}

    def own_row(tables: dict) -> dict:
        return next(row for row in reversed(tables["table2"]["rows"]) if "cells" in row)

    edit("tables.yaml", lambda d: own_row(d)["cells"].update(pc459=cell))

    def show(figures: dict) -> None:
        figures["training_curves"]["tables"] = ["table2"]
        figures["qualitative"]["benchmarks"] = ["street"]

    edit("figures.yaml", show)
    return edit


LACK = r"params/scales/mini\.yaml: assets\.street: missing; data set street needs it .*assets\.yaml"


def test_a_scale_without_the_data_is_valid_and_makes_everything_else(
    street: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    mini = Project("mini")
    load_data(mini)
    assert set(mini.unserved) == {"table2"} and "table1" in mini.tables
    assert not {"training_curves", "qualitative"} & set(load_figures(mini))
    graph = Graph(project=mini)
    targets = resolve_targets(mini, [])
    assert len(targets) == len(mini.tables) == 7
    make_plan(graph, "mini", targets[:1])
    assert "results/mini/table2.json" not in graph.inputs("report", {"prefix": "mini/"})
    download_assets(mini, [], list_only=True)
    assert "street" not in capsys.readouterr().out
    paper = Project("paper")
    assert not paper.unserved and paper.benchmark("street").dataset == "street"
    assert paper.dataset_assets("street", "val")["archive"] == "street"
    assert set(load_figures(paper)) >= {"training_curves", "qualitative"}


def test_what_needs_missing_data_names_file_key_and_remedy(street: Edit) -> None:
    mini = Project("mini")
    graph = Graph(project=mini)
    of_run = {"run": "possam_b_coco", "seed": "0", "benchmark": "street", "condition": "trained"}
    asked: dict[str, Callable[[], object]] = {
        "": lambda: graph.inputs("convert", {"scale": "mini", "dataset": "street", "split": "val"}),
        "benchmark street: ": lambda: graph.inputs("evaluate", {"prefix": "mini/", **of_run}),
        r"params/tables\.yaml: table2: benchmark street: ": lambda: mini.table("table2"),
        "tables.yaml: table2: .*": lambda: graph.inputs(
            "table", {"prefix": "mini/", "table": "table2"}
        ),
        "figures.yaml: qualitative: benchmark street: ": lambda: find_figure(mini, "qualitative"),
        "training_curves: .*table2: .*": lambda: find_figure(mini, "training_curves"),
        "yaml: table2: .*": lambda: resolve_targets(mini, ["table2"]),
        "yaml: qualitative: .*": lambda: resolve_targets(mini, ["qualitative"]),
    }
    for where, call in asked.items():
        with pytest.raises(InputError, match=where + LACK):
            call()


def test_a_data_set_that_is_half_there_is_refused(street: Edit) -> None:
    def half(data: dict) -> None:
        data["assets"]["street_class_names"] = "street_class_names"

    street("scales/mini.yaml", half)
    with pytest.raises(InputError, match=LACK):
        Project("mini")


def test_a_scale_without_a_training_set_says_so_where_it_is_trained_on(street: Edit) -> None:
    street("scales/mini.yaml", lambda data: data["assets"].pop("coco_train_images"))
    mini = Project("mini")
    assert mini.dataset_assets("coco", "val")["images"] == "synthetic_coco_val_images"
    lack = r"assets\.coco_train_images: missing; data set coco needs it for its split train"
    with pytest.raises(InputError, match="table1: sam_clip_coco: .*" + lack):
        mini.table("table1")
    with pytest.raises(InputError, match=lack):
        Graph(project=mini).inputs(
            "convert", {"scale": "mini", "dataset": "coco", "split": "train"}
        )
