"""``possam convert-files``: every layout, and what is said when a file is bad."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam import cli
from possam.datasets.format import ConvertedDataset
from tests.support.layouts import (
    ade_labels,
    coco_ids,
    context_labels,
    make_ade20k,
    make_ade20k_full,
    make_coco,
    make_pascal_context,
    save_ade_seg,
    save_mat,
    save_photo,
    save_rgb_ids,
)

SPLITS = {
    "coco": "val2017",
    "ade20k": "validation",
    "ade20k_full": "validation",
    "pascal_context_459": "val",
}


def make(layout: str, root: Path) -> list[str]:
    """A miniature in the layout, and the command line that converts it to ``root/out``."""
    source = root
    if layout == "coco":
        make_coco(root)
        (root / "annotations").mkdir()
        (root / "panoptic.json").rename(root / "annotations/panoptic_val2017.json")
        (root / "instances.json").rename(root / "annotations/instances_val2017.json")
        (root / "panoptic_val2017").rename(root / "annotations/panoptic_val2017")
    elif layout == "ade20k":
        source = root / "ADEChallengeData2016"
        make_ade20k(source)
        (source / "annotations_instance").rename(root / "annotations_instance")
    elif layout == "ade20k_full":
        make_ade20k_full(root)
    else:
        source = root / "VOC2010"
        make_pascal_context(root)
        (root / "trainval").rename(source / "trainval")
    names = source / "names.txt" if (source / "names.txt").exists() else root / "names.txt"
    line = ["convert-files", layout, str(source), "--split", SPLITS[layout]]
    line += ["--class-names", str(names), "--out", str(root / "out")]
    if layout.startswith("ade20k"):
        line += ["--class-table", str(source / "table.csv")]
    return line


@pytest.mark.parametrize("layout", SPLITS)
def test_every_layout_is_converted(
    tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(make(layout, tmp_path)) == 0
    dataset = ConvertedDataset.open(tmp_path / "out")
    assert (dataset.name, len(dataset)) == (layout, 1 if layout.startswith("ade20k") else 2)
    assert f"{tmp_path / 'out'}: " in capsys.readouterr().out


def test_options_of_other_layouts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = make("coco", tmp_path)
    assert cli.main([*line, "--class-table", "table.csv"]) == 2
    assert "--class-table: only for ade20k, ade20k_full" in capsys.readouterr().err
    assert cli.main([*line, "--without-instances"]) == 2
    assert "--without-instances: only for ade20k, not coco" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def _cut(path: str) -> Callable[[Path], Any]:
    return lambda r: (r / path).write_bytes((r / path).read_bytes()[:-30])


def _json(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / PANOPTIC
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))

    return damage


def _first(data: Any) -> Any:
    return data["annotations"][0]["segments_info"]


PANOPTIC = "annotations/panoptic_val2017.json"
COCO_PNG = "annotations/panoptic_val2017/000000000012.png"
ADE = "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"
FULL = "images/ADE/validation/urban/street/ADE_val_00000001"
MAT = "VOC2010/trainval/2008_000001.mat"

BAD: dict[str, tuple[str, Callable[[Path], Any], str, str]] = {
    "coco, truncated JSON": ("coco", _cut(PANOPTIC), PANOPTIC, "may be truncated"),
    "coco, truncated PNG": ("coco", _cut(COCO_PNG), COCO_PNG, "truncated"),
    "coco, PNG of another size": (
        "coco", lambda r: save_rgb_ids(r / COCO_PNG, coco_ids()[:3]), COCO_PNG, "6x3",
    ),
    "coco, unknown category": (
        "coco", _json(lambda d: _first(d)[0].update(category_id=4)), PANOPTIC, "category_id 4",
    ),
    "coco, segment twice": (
        "coco", _json(lambda d: _first(d)[1].update(id=70000)), PANOPTIC, "70000 comes twice",
    ),
    "coco, no categories": (
        "coco", _json(lambda d: d.pop("categories")), PANOPTIC, "no list 'categories'",
    ),
    "coco, PNG id not in the JSON": (
        "coco", _json(lambda d: _first(d).pop()), COCO_PNG, "segment id 9 is not in segments_info",
    ),
    "ade20k, truncated PNG": ("ade20k", _cut(ADE), ADE, "truncated"),
    "ade20k, PNG of another size": (
        "ade20k", lambda r: Image.fromarray(ade_labels()[:2]).save(r / ADE), ADE, "5x2",
    ),
    "ade20k, unknown label": (
        "ade20k", lambda r: Image.fromarray(ade_labels() + 9).save(r / ADE), ADE, "no class",
    ),
    "ade20k_full, truncated JPEG": ("ade20k_full", _cut(f"{FULL}.jpg"), f"{FULL}.jpg", "truncated"),
    "ade20k_full, PNG of another size": (
        "ade20k_full", lambda r: save_photo(r / f"{FULL}.jpg", 4, 5), f"{FULL}_seg.png", "5x4",
    ),
    "ade20k_full, nothing evaluated": (
        "ade20k_full", lambda r: save_ade_seg(r / f"{FULL}_seg.png", np.full((3, 5), 2311)),
        "out", "1 of 1 images have no labelled pixel",
    ),
    "pascal_context_459, truncated mat": ("pascal_context_459", _cut(MAT), MAT, "truncated"),
    "pascal_context_459, unknown label": (
        "pascal_context_459", lambda r: save_mat(r / MAT, context_labels() + np.uint16(9)), MAT,
        "labels are 9..12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files_end_with_one_message_and_code_2(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layout, damage, file, fault = BAD[case]
    line = make(layout, tmp_path)
    damage(tmp_path)
    assert cli.main(line) == 2
    message = capsys.readouterr().err.split("possam convert-files: ")[1]
    assert str(tmp_path / file) in message and fault in message
    assert "Traceback" not in message
    assert not list(tmp_path.glob("out*"))


def test_an_earlier_result_stays_when_a_later_one_is_not_valid(tmp_path: Path) -> None:
    line = make("ade20k_full", tmp_path)
    assert cli.main(line) == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    save_ade_seg(tmp_path / f"{FULL}_seg.png", np.full((3, 5), 2311))
    assert cli.main(line) == 2
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


def test_the_json_names_the_classes_where_no_file_does(tmp_path: Path) -> None:
    line = make("coco", tmp_path)
    place = line.index("--class-names")
    del line[place : place + 2]
    _json(lambda d: d["categories"][0].update(name="disc, round  thing"))(tmp_path)
    _json(lambda d: d["categories"][1].update(names=["grass, cut", "lawn"]))(tmp_path)
    path = tmp_path / "annotations/instances_val2017.json"
    assert cli.main(line) == 0
    dataset = ConvertedDataset.open(tmp_path / "out")
    assert dataset.vocabulary == [("disc", "round thing"), ("grass, cut", "lawn"), ("bar",)]
    assert [c.upstream_id for c in dataset.categories] == [1, 5, 7]
    assert path.exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d["categories"][0].update(name=" , "), "the name is empty"),
        (lambda d: d["categories"][0].update(name=7), "name 7 is not text"),
        (lambda d: d["categories"][0].pop("name"), "no 'name'"),
        (lambda d: d["categories"][0].update(names=[]), "names [] is not a list of names"),
        (lambda d: d["categories"][0].update(isthing=2), "isthing 2 is not 0 or 1"),
    ],
)
def test_bad_names_in_the_json_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = make("coco", tmp_path)
    place = line.index("--class-names")
    del line[place : place + 2]
    _json(change)(tmp_path)
    assert cli.main(line) == 2
    error = capsys.readouterr().err
    assert text in error and PANOPTIC in error and "--class-names" in error
    assert not (tmp_path / "out").exists()


def test_folders_named_one_by_one_with_ids_that_are_texts(tmp_path: Path) -> None:
    """Photographs in subfolders, and text ids of images and instances."""
    make("coco", tmp_path)
    annotations = tmp_path / "annotations"
    for name in ("panoptic_val2017.json", "instances_val2017.json"):
        data = json.loads((annotations / name).read_text())
        for image in data["images"]:
            image["id"] = f"picture {image['id']}"
            image["file_name"] = f"street/{image['file_name']}"
        for entry in data["annotations"]:
            entry["image_id"] = f"picture {entry['image_id']}"
            if "id" in entry:
                entry["id"] = f"mask {entry['id']}"
        (annotations / name).write_text(json.dumps(data))
    (tmp_path / "photos").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "photos/street")
    (annotations / "panoptic_val2017").rename(tmp_path / "maps")
    line = ["convert-files", "coco", "--images", str(tmp_path / "photos")]
    line += ["--panoptic-json", str(annotations / "panoptic_val2017.json")]
    line += ["--panoptic-png", str(tmp_path / "maps")]
    line += ["--instances-json", str(annotations / "instances_val2017.json")]
    assert cli.main([*line, "--out", str(tmp_path / "out")]) == 0
    dataset = ConvertedDataset.open(tmp_path / "out")
    assert [record.upstream_id for record in dataset.images] == ["picture 12", "picture 34"]
    assert [record.file.parent.name for record in dataset.images] == ["street", "street"]
    assert len(dataset.instances()["annotations"]) == 2
    assert dataset.split == "val"


def test_what_is_not_named_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(*line: str) -> str:
        assert cli.main(["convert-files", *line, "--out", str(tmp_path / "out")]) == 2
        return capsys.readouterr().err

    assert "--images: give it" in message("coco")
    assert "--panoptic-json: give it" in message("coco", "--images", "photos")
    assert "--images: not together" in message("coco", "coco", "--images", "photos")
    assert "--split: name the split, for example train2017" in message("coco", "coco")
    names = ("--class-names", "names.txt")
    assert "--images: ade20k has no such part" in message("ade20k", "--images", "x", *names)
    assert "ade20k: name the folder" in message("ade20k", *names)
    assert "--class-names: ade20k needs" in message("ade20k", "root", "--split", "validation")
