"""Of each upstream archive only those files are unpacked that conversions read."""

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from possam.assets.archives import unpack
from possam.datasets import catalogue
from possam.datasets.upstream.ade20k_full import read_ade20k_full
from possam.params.data import needed_parts, selection
from possam.params.project import Project
from tests.support.layouts import make_ade20k_full

PARAMS = Path(__file__).resolve().parents[2] / "params"
MASKS = 70
"""Objects and parts of the published release's ADE_train_00016869."""


@pytest.fixture(scope="module")
def paper() -> Project:
    return Project("paper", folder=PARAMS)


def test_of_the_full_ade20k_release_a_fraction_is_unpacked(paper: Project, tmp_path: Path) -> None:
    """The layout of 2021_17_01: five kinds of files per image, and a mask for each object."""
    source = make_ade20k_full(tmp_path / "source")
    label_map = (source["root"] / "images/ADE/validation/urban/street").glob("*_seg.png")
    photo = next((source["root"] / "images/ADE/validation/urban/street").glob("*.jpg"))
    png, jpeg = next(label_map).read_bytes(), photo.read_bytes()
    root, archive = "ADE20K_2021_17_01", tmp_path / "ADE20K_2021_17_01.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for name in ("index_ade20k.pkl", "objects.txt"):
            bundle.writestr(f"{root}/{name}", b"index")
        for split, folder in (("train", "training"), ("val", "validation")):
            for number in (1, 2):
                stem = f"ADE_{split}_{number:08d}"
                where = f"{root}/images/ADE/{folder}/urban/street/{stem}"
                bundle.writestr(f"{where}.jpg", jpeg)
                bundle.writestr(f"{where}.json", b"{}")
                for ending in ("seg", "parts_1", "parts_2"):
                    bundle.writestr(f"{where}_{ending}.png", png)
                for mask in range(MASKS):
                    bundle.writestr(f"{where}/instance_{mask:03d}_{stem}.png", png)
        assert len(bundle.namelist()) == 2 + 4 * (5 + MASKS)
    record = unpack(archive, tmp_path / "out", parts=needed_parts(paper, "ade20k_full"))
    assert record["files"] == 2 * 2
    tables = {key: source[key] for key in ("class_names", "classes_csv")}
    found = read_ade20k_full(root=tmp_path / "out" / root, split="val", **tables)
    assert [task.id for task in found.tasks] == [1, 2]


def test_synthetic_archives_are_unpacked_as_those_that_they_stand_for(paper: Project) -> None:
    mini = Project("mini", folder=PARAMS)
    archives = [role for role, name in paper.scale.assets.items() if paper.assets[name].unpack]
    assert len(archives) == 9
    for role in archives:
        parts = needed_parts(paper, paper.scale.assets[role])
        assert parts and needed_parts(mini, mini.scale.assets[role]) == parts
    assert selection(needed_parts(paper, "coco_instances")) == [
        ["annotations/instances_train2017.json"],
        ["annotations/instances_val2017.json"],
    ]


def test_nothing_is_left_out_unless_every_data_set_says_what_it_reads(
    paper: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = catalogue.datasets()
    other = replace(known["ade20k_full"], on_disk={})
    monkeypatch.setattr(catalogue, "datasets", lambda: {**known, "other": other})
    monkeypatch.setattr("possam.params.data.datasets", catalogue.datasets)
    assert needed_parts(paper, "ade20k_full") == ()
    assert needed_parts(paper, "coco_panoptic") != ()
