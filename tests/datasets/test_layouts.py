"""Layouts that people have: Cityscapes, Mapillary Vistas, subfolders, suffixes, stray files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam import cli
from possam.datasets.files import PICTURES, Folder, is_stray
from possam.datasets.format import ConvertedDataset
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from tests.support.layouts import (
    convert_ade20k,
    convert_ade20k_full,
    convert_coco,
    convert_pascal_context,
    make_ade20k,
    make_ade20k_full,
    make_coco,
    make_pascal_context,
    write,
)
from tests.support.streets import KEYS, cityscapes, mapillary, street_ids

STREETS: dict[str, Callable[[Path], list[str]]] = {
    "Cityscapes": cityscapes,
    "Cityscapes, photographs by their own names": lambda root: cityscapes(root, marker=""),
    "Mapillary Vistas v1.2": mapillary,
    "Mapillary Vistas v1.1": lambda root: mapillary(root, version=""),
    "Mapillary Vistas v2.0": lambda root: mapillary(root, version="v2.0/", year=2020),
}


def convert_files(root: Path, split: str, names: str = "7:road\n26:car\n") -> int:
    write(root / "names.txt", names)
    names_file, out = str(root / "names.txt"), str(root / "out")
    command = ["convert-files", "coco", str(root), "--split", split]
    return cli.main([*command, "--class-names", names_file, "--out", out])


@pytest.mark.parametrize("case", STREETS)
def test_street_scenes_convert_and_are_scored_by_their_text_ids(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    [split] = STREETS[case](tmp_path)
    assert convert_files(tmp_path, split) == 0
    dataset = ConvertedDataset.open(tmp_path / "out")
    assert [record.id for record in dataset.images] == [1, 2]
    keys = [record.upstream_id for record in dataset.images]
    assert keys == list(KEYS if case.startswith("City") else ("_gQ8-Xy", "0aB_c"))
    assert [c.upstream_name for c in dataset.categories] == ["road", "car"]
    for position, key in enumerate(keys):
        assert key in str(dataset.images[position].file)
        assert np.array_equal(dataset.panoptic(position), street_ids())
        assert dataset.image(position).shape == (4, 6, 3)
    upstream = next(tmp_path.rglob("*panoptic_*.json"))
    folder = upstream.with_suffix("") if upstream.with_suffix("").is_dir() else upstream.parent
    capsys.readouterr()
    command = ["score", str(tmp_path / "out"), str(upstream), "--segmentations", str(folder)]
    assert cli.main([*command, "--category-ids", "upstream", "--workers", "1"]) == 0
    assert "PQ: 100.0000" in capsys.readouterr().out


def test_two_versions_are_told_apart_by_the_split(tmp_path: Path) -> None:
    mapillary(tmp_path)
    mapillary(tmp_path, version="v2.0/", year=2020)
    assert convert_files(tmp_path, "validation") == 2
    assert convert_files(tmp_path, "validation/v2.0") == 0


def test_text_ids_that_do_not_fit_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cityscapes(tmp_path)
    path = tmp_path / "gtFine/cityscapes_panoptic_val.json"
    good = json.loads(path.read_text())
    changes: dict[str, Callable[[Any], None]] = {
        "image_id 'ulm'": lambda data: data["annotations"][0].update(image_id="ulm"),
        "image_id 1": lambda data: data["annotations"][0].update(image_id=1),
        f"id '{KEYS[0]}' is empty, or comes twice": lambda data: data["images"][1].update(
            id=KEYS[0]
        ),
        "id '' is empty": lambda data: data["images"][1].update(id=""),
        "does not belong to these": lambda data: data["annotations"][0].update(
            file_name=data["annotations"][1]["file_name"]
        ),
    }
    for fault, change in changes.items():
        data = json.loads(json.dumps(good))
        change(data)
        write(path, data)
        assert convert_files(tmp_path, "val") == 2
        assert fault in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_images_in_subfolders_keep_their_places(tmp_path: Path) -> None:
    """Two images of one name in two folders, whose annotations lie likewise."""
    arguments = make_coco(tmp_path)
    data = json.loads((tmp_path / "panoptic.json").read_text())
    for entries, folder, suffix in (
        (data["images"], arguments["images"], ".jpg"),
        (data["annotations"], arguments["panoptic_png"], ".png"),
    ):
        for place, entry in zip(("day", "night"), entries, strict=True):
            (folder / place).mkdir()
            (folder / entry["file_name"]).rename(folder / place / f"1{suffix}")
            entry["file_name"] = f"{place}/1{suffix}"
    write(tmp_path / "panoptic.json", data)
    convert_coco(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    places = [record.file.relative_to(dataset.image_root).as_posix() for record in dataset.images]
    assert places == ["day/1.jpg", "night/1.jpg"]
    assert [record.panoptic.name for record in dataset.images] == ["day__1.png", "night__1.png"]
    assert not np.array_equal(dataset.image(0), dataset.image(1))
    validate_dataset(arguments["out"])


def resave(path: Path, suffix: str) -> None:
    with Image.open(path) as image:
        image.load()
    path.unlink()
    image.save(path.with_suffix(suffix))


LAYOUTS: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "coco": (make_coco, convert_coco, "val2017/000000000012.jpg"),
    "ade20k": (make_ade20k, convert_ade20k, "images/validation/ADE_val_00000001.jpg"),
    "ade20k_full": (
        make_ade20k_full, convert_ade20k_full,
        "images/ADE/validation/urban/street/ADE_val_00000001.jpg",
    ),
    "pascal_context_459": (
        make_pascal_context, convert_pascal_context, "VOC2010/JPEGImages/2008_000001.jpg",
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("suffix", [*PICTURES, ".JPG", ".Png", ".TIFF"])
def test_photographs_of_every_suffix_in_every_layout(
    tmp_path: Path, layout: str, suffix: str
) -> None:
    make, run, photo = LAYOUTS[layout]
    arguments = make(tmp_path)
    resave(tmp_path / photo, suffix)
    manifest = run(**arguments)
    record = ConvertedDataset.open(arguments["out"]).images[0]
    renamed = suffix != ".jpg" and layout == "coco"
    assert record.file.name.endswith(suffix)
    assert manifest["warts"].get("renamed_photo", {}).get("count", 0) == renamed
    validate_dataset(arguments["out"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stray_files_are_left_out_and_counted(tmp_path: Path, layout: str) -> None:
    make, run, photo = LAYOUTS[layout]
    arguments = make(tmp_path)
    place = (tmp_path / photo).parent
    names = [f"._{Path(photo).name}", ".DS_Store", "Thumbs.db", "desktop.ini"]
    names += [f".ipynb_checkpoints/{Path(photo).stem}-checkpoint.jpg"]
    for name in names:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(b"\0\5\26\7 no picture")
    manifest = run(**arguments)
    stray = manifest["warts"]["stray_file"]
    assert stray["count"] == len(names)
    assert all(any(file.endswith(name) for file in stray["files"]) for name in names)
    validate_dataset(arguments["out"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_photographs_of_one_stem_are_named_before_the_work(tmp_path: Path, layout: str) -> None:
    make, run, photo = LAYOUTS[layout]
    arguments = make(tmp_path)
    other = (tmp_path / photo).with_suffix(".png")
    Image.new("RGB", (6, 4)).save(other)
    if layout == "coco":  # a photograph counts only if the JSON lists it
        data = json.loads((tmp_path / "panoptic.json").read_text())
        data["images"].append(data["images"][0] | {"id": 5, "file_name": other.name})
        data["annotations"].append(data["annotations"][0] | {"image_id": 5})
        write(tmp_path / "panoptic.json", data)
    if layout == "pascal_context_459":  # the list means the .jpg: the other is no part of the set
        run(**arguments)
        return
    with pytest.raises(InputError) as error:
        run(**arguments)
    message = str(error.value)
    assert str(other) in message and str(tmp_path / photo) in message
    assert not list(tmp_path.glob("*converted*"))


def test_a_list_may_name_photographs_in_another_unicode_form(tmp_path: Path) -> None:
    """macOS stores names with accents apart from their letters."""
    write(tmp_path / "e\N{COMBINING ACUTE ACCENT}.jpg", "")
    folder = Folder(tmp_path, what="photograph")
    assert folder.picture("\N{LATIN SMALL LETTER E WITH ACUTE}.jpg") is not None
    write(tmp_path / "a.PNG", "")
    write(tmp_path / "b/a.tif", "")
    with pytest.raises(InputError, match=r"a\.PNG: could be a\.jpg, and .*a\.tif, too"):
        Folder(tmp_path, what="photograph").picture("a.jpg")


def test_what_is_stray() -> None:
    stray = ("._a.jpg", ".DS_Store", "x/Thumbs.db", "DESKTOP.INI", "__MACOSX/a.jpg", "@eaDir/a.jpg")
    assert all(is_stray(Path(name)) for name in stray)
    assert not any(is_stray(Path(name)) for name in ("a.jpg", "x/_a.b.jpg", "checkpoints.png"))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_and_names_from_windows(tmp_path: Path, encoding: str, newline: str) -> None:
    arguments = make_pascal_context(tmp_path)
    for path in (tmp_path / "names.txt", tmp_path / "VOC2010/ImageSets/Main/val.txt"):
        path.write_text(path.read_text(), encoding=encoding, newline=newline)
    manifest = convert_pascal_context(**arguments)
    assert (manifest["num_classes"], manifest["counts"]["images"]) == (3, 2)
    arguments = make_ade20k(tmp_path / "ade")
    for path in (arguments["class_names"], arguments["instance_classes_csv"]):
        path.write_text(path.read_text(), encoding=encoding, newline=newline)
    assert convert_ade20k(**arguments)["num_classes"] == 4
