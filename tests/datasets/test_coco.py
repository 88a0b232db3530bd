"""COCO conversion: hand-made miniature, real sample, and every kind of bad input."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_length

from possam.datasets.format import ConvertedDataset
from possam.datasets.pixels import decode_file
from possam.datasets.upstream.coco import read_coco
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from tests.support.layouts import coco_ids, convert_coco, make_coco, save_photo, save_rgb_ids
from tests.support.parity_report import Parity


def edit(path: Path, change: Callable[[Any], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_miniature_is_converted_as_computed_by_hand(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    manifest = convert_coco(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    assert (dataset.name, dataset.split, len(dataset)) == ("coco", "val", 2)
    assert dataset.vocabulary == [("disc", "circle"), ("grass",), ("bar", "stick")]
    assert [(c.index, c.upstream_id, c.is_thing) for c in dataset.categories] == [
        (0, 1, True), (1, 5, False), (2, 7, True),
    ]  # fmt: skip
    record = dataset.images[0]
    found = {s.id: (s.category, s.area, s.bbox, s.is_crowd) for s in record.segments}
    assert found == {
        70000: (1, 15, (0, 0, 5, 4), False),
        300: (0, 4, (2, 1, 2, 2), False),
        9: (2, 4, (5, 0, 1, 4), True),
    }
    assert np.array_equal(dataset.panoptic(0), coco_ids())
    expected = np.ones((4, 6), dtype=int)
    expected[1:3, 2:4], expected[:, 5], expected[3, 0] = 0, 2, -1
    assert np.array_equal(dataset.semantic(0), expected)
    assert manifest["counts"] == {
        "images": 2, "segments": 6, "things": 4, "stuff": 2, "crowd": 2, "instances": 2,
    }  # fmt: skip
    assert manifest["histogram"] == {
        "pixels": [8, 30, 8], "segments": [2, 2, 2], "instances": [1, 0, 1], "void_pixels": 2,
    }  # fmt: skip
    assert manifest["instances"] == "upstream annotations (1 of other images left out)"
    photo = decode_file(arguments["images"] / "000000000012.jpg")[0]
    assert np.array_equal(dataset.image(0), photo)
    assert not Path(manifest["image_root"]).is_absolute()
    assert validate_dataset(arguments["out"])["absent_classes"] == []


def test_a_moved_project_finds_its_images_behind_a_link(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path / "upstream")
    project = tmp_path / "project"
    (project / "raw").mkdir(parents=True)
    (project / "raw/val2017").symlink_to(arguments["images"].absolute())
    out = project / "datasets/coco_val"
    linked = arguments | {"images": project / "raw/val2017", "out": out}
    assert convert_coco(**linked)["image_root"] == "../../raw/val2017"
    moved = tmp_path / "deeper/renamed"
    moved.parent.mkdir()
    project.rename(moved)
    assert ConvertedDataset.open(moved / "datasets/coco_val").image(0).ndim == 3


def test_images_are_found_from_a_folder_that_is_a_link(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path / "project/raw")
    (tmp_path / "other disk/deep").mkdir(parents=True)
    (tmp_path / "project/datasets").symlink_to(tmp_path / "other disk/deep")
    out = tmp_path / "project/datasets/coco_val"
    convert_coco(**arguments | {"out": out})
    assert ConvertedDataset.open(out).image(0).ndim == 3


def test_upstream_pngs_are_kept_bit_for_bit(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    convert_coco(**arguments)
    for png in sorted(arguments["panoptic_png"].iterdir()):
        assert (arguments["out"] / "panoptic" / png.name).read_bytes() == png.read_bytes()


def test_instances_become_run_length_masks_with_contiguous_classes(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    convert_coco(**arguments)
    data = ConvertedDataset.open(arguments["out"]).instances()
    assert [entry["id"] for entry in data["categories"]] == [0, 2]
    disc, bars = data["annotations"]
    assert (disc["category_id"], disc["iscrowd"], bars["category_id"], bars["iscrowd"]) == (
        0, 0, 2, 1,
    )  # fmt: skip
    mask = run_length.decode(disc["segmentation"]).astype(bool)
    assert np.array_equal(mask, coco_ids() == 300)
    assert np.array_equal(run_length.decode(bars["segmentation"]).astype(bool), coco_ids() == 9)


def test_without_an_instances_file_thing_segments_are_the_instances(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path) | {"instances_json": None}
    manifest = convert_coco(**arguments)
    assert manifest["instances"] == "panoptic segments"
    data = ConvertedDataset.open(arguments["out"]).instances()
    assert [e["category_id"] for e in data["annotations"]] == [0, 2, 0, 2]
    assert np.array_equal(
        run_length.decode(data["annotations"][0]["segmentation"]).astype(bool), coco_ids() == 300
    )


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    one = convert_coco(**arguments)
    two = convert_coco(**arguments | {"workers": 2, "out": tmp_path / "two"})
    assert one["content"] == two["content"]
    assert one == two | {"image_root": one["image_root"]}


def test_content_hash_sees_every_kind_of_change(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    seen = {convert_coco(**arguments)["content"]}
    save_photo(arguments["images"] / "000000000012.jpg", 4, 6, seed=99)
    seen.add(convert_coco(**arguments)["content"])
    ids = coco_ids()
    ids[0, 0] = 300
    save_rgb_ids(arguments["panoptic_png"] / "000000000012.png", ids)
    seen.add(convert_coco(**arguments)["content"])
    arguments["class_names"].write_text(
        arguments["class_names"].read_text().replace("stick", "rod")
    )
    seen.add(convert_coco(**arguments)["content"])
    assert len(seen) == 4


@pytest.mark.parity("coco")
def test_real_sample_is_kept_bit_for_bit(shared: Path, tmp_path: Path, parity: Parity) -> None:
    source = shared / "samples" / "coco"
    out = tmp_path / "coco_val"
    convert_coco(
        images=source / "val2017",
        panoptic_json=source / "annotations" / "panoptic_val2017.json",
        panoptic_png=source / "annotations" / "panoptic_val2017",
        instances_json=None,
        class_names=shared / "upstream/openseg_labels/coco_panoptic_with_prompt_eng.txt",
        split="val",
        out=out,
        workers=1,
    )
    png = source / "annotations" / "panoptic_val2017" / "000000142238.png"
    parity.equal((out / "panoptic" / png.name).read_bytes(), png.read_bytes())
    dataset = ConvertedDataset.open(out)
    upstream = json.loads((source / "annotations" / "panoptic_val2017.json").read_text())
    assert len(dataset.categories) == 133
    assert sum(category.is_thing for category in dataset.categories) == 80
    semantic, ids = dataset.semantic(0), dataset.panoptic(0)
    parity.equal(semantic == -1, ids == 0)
    for entry, segment in zip(
        upstream["annotations"][0]["segments_info"], dataset.images[0].segments, strict=True
    ):
        category = dataset.categories[segment.category]
        parity.equal(segment.to_json() | {"category_id": category.upstream_id}, entry)
        parity.equal(np.unique(semantic[ids == segment.id]), np.array([category.index]))
    for entry, category in zip(upstream["categories"], dataset.categories, strict=True):
        parity.equal((category.upstream_id, category.is_thing), (entry["id"], entry["isthing"]))
    validate_dataset(out)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _drop(key: str) -> Callable[[Path], None]:
    return lambda root: edit(root / "panoptic.json", lambda data: data.pop(key))


def _set(path: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    def change(data: Any) -> None:
        for part in path[:-1]:
            data = data[part]
        data[path[-1]] = value

    return lambda root: edit(root / "panoptic.json", change)


def _repeat(key: str) -> Callable[[Path], None]:
    return lambda root: edit(root / "panoptic.json", lambda data: data[key].append(data[key][0]))


SEGMENTS = ("annotations", 0, "segments_info")
PNG, JPEG = "panoptic_val2017/000000000012.png", "val2017/000000000012.jpg"
BAD = {
    "no categories": (_drop("categories"), "categories"),
    "no images": (_drop("images"), "images"),
    "image twice": (_repeat("images"), "twice"),
    "category twice": (_repeat("categories"), "twice"),
    "annotation twice": (_repeat("annotations"), "twice"),
    "isthing missing": (
        lambda r: edit(r / "panoptic.json", lambda d: d["categories"][0].pop("isthing")),
        "isthing",
    ),
    "unknown category": (_set((*SEGMENTS, 0, "category_id"), 4), "category_id 4"),
    "segment twice": (_set((*SEGMENTS, 1, "id"), 70000), "twice"),
    "segment not in PNG": (_set((*SEGMENTS, 1, "id"), 301), "301 has no pixel"),
    "PNG id not in JSON": (_set(SEGMENTS, []), "not in segments_info"),
    "no annotation": (_set(("annotations",), []), "no annotation"),
    "annotation of no image": (_set(("annotations", 0, "image_id"), 13), "no annotation"),
    "path in file name": (_set(("images", 0, "file_name"), "../x.jpg"), "plain file name"),
    "other size": (_set(("images", 1, "width"), 7), "7x4"),
    "PNG of other size": (lambda r: save_rgb_ids(r / PNG, coco_ids()[:3]), "6x3"),
    "JPEG of other size": (lambda r: save_photo(r / JPEG, 4, 5), "5x4"),
    "truncated PNG": (lambda r: _truncate(r / PNG), "truncated"),
    "truncated JPEG": (lambda r: _truncate(r / JPEG), "truncated"),
    "missing PNG": (lambda r: (r / PNG).unlink(), "unpack"),
    "missing JPEG": (lambda r: (r / JPEG).unlink(), "missing"),
    "truncated JSON": (lambda r: _truncate(r / "panoptic.json"), "truncated"),
    "other class names": (
        lambda r: (r / "names.txt").write_text("1:disc\n5:grass\n"),
        "only in the JSON: .7",
    ),
    "class names in other order": (
        lambda r: (r / "names.txt").write_text("5:grass\n1:disc\n7:bar\n"),
        "order",
    ),
    "instance of stuff": (
        lambda r: edit(r / "instances.json", lambda d: d["annotations"][0].update(category_id=5)),
        "category_id 5",
    ),
    "instance id twice": (
        lambda r: edit(r / "instances.json", lambda d: d["annotations"][1].update(id=101)),
        "twice",
    ),
    "instance without mask": (
        lambda r: edit(r / "instances.json", lambda d: d["annotations"][0].update(segmentation=[])),
        "segmentation",
    ),
    "instances under other names": (
        lambda r: edit(r / "instances.json", lambda d: d["categories"][0].update(name="bar")),
        "'bar' has the id 1, but 7 in the panoptic",
    ),
    "instances of another split": (
        lambda r: edit(
            r / "instances.json", lambda d: [a.update(image_id=99) for a in d["annotations"]]
        ),
        "none of 3 is of an image",
    ),
    "names of the next class": (
        lambda r: (r / "names.txt").write_text("1:grass\n5:bar\n7:disc\n"),
        "3 of 3 classes have the name of another",
    ),
    "RLE of other size": (
        lambda r: edit(
            r / "instances.json",
            lambda d: d["annotations"][1].update(segmentation={"size": [4, 5], "counts": "PP"}),
        ),
        "segmentation",
    ),
}


HOSTILE = (None, True, "1", 1.0, -1, 1 << 64, float("nan"), [1], {"a": 1})
"""For every field that holds a whole number."""
FIELDS = {
    "panoptic.json": (
        ("images", 0, "id"), ("images", 0, "width"), ("images", 0, "height"),
        ("annotations", 0, "image_id"), ("categories", 0, "id"), ("categories", 0, "isthing"),
        (*SEGMENTS, 0, "id"), (*SEGMENTS, 0, "category_id"), (*SEGMENTS, 0, "iscrowd"),
    ),
    "instances.json": (
        ("annotations", 0, "id"), ("annotations", 0, "image_id"),
        ("annotations", 0, "category_id"), ("annotations", 0, "iscrowd"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "field"), [(file, field) for file, fields in FIELDS.items() for field in fields]
)
def test_a_whole_number_is_not_what_only_looks_like_one(
    tmp_path: Path, file: str, field: tuple[Any, ...]
) -> None:
    """The message names the file and the field; no image is read before."""
    arguments = make_coco(tmp_path)
    sound = json.loads((tmp_path / file).read_text())
    read = {name: arguments[name] for name in arguments if name not in ("split", "out", "workers")}
    for value in HOSTILE:
        data = json.loads(json.dumps(sound))
        node = data
        for part in field[:-1]:
            node = node[part]
        node[field[-1]] = value
        (tmp_path / file).write_text(json.dumps(data))
        with pytest.raises(InputError) as error:
            read_coco(**read)
        assert file in str(error.value)
        assert str(field[-1]) in str(error.value)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b'{"images": [], "images": []}', "key 'images' is written twice"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"images": ' + b"9" * 5000 + b"}", "digit"),
        ('{"images": "é"}'.encode("latin-1"), "can't decode byte"),
        (b"", "Expecting value"),
    ],
)
def test_a_text_that_is_no_json_is_refused(tmp_path: Path, text: bytes, fault: str) -> None:
    arguments = make_coco(tmp_path)
    arguments["panoptic_json"].write_bytes(text)
    with pytest.raises(InputError, match=r"panoptic\.json: not valid JSON") as error:
        convert_coco(**arguments)
    assert fault in str(error.value)


def test_a_field_that_is_not_used_may_hold_anything(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    text = arguments["panoptic_json"].read_text()
    arguments["panoptic_json"].write_text(text.replace('"area": 1,', '"area": 1e999,'))
    assert convert_coco(**arguments)["counts"]["segments"] == 6


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    content = arguments["panoptic_json"].read_bytes()
    arguments["panoptic_json"].write_bytes(b"\xef\xbb\xbf" + content)
    assert convert_coco(**arguments)["counts"]["images"] == 2


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    arguments = make_coco(tmp_path)
    damage, fault = BAD[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=fault) as error:
        convert_coco(**arguments)
    assert str(tmp_path) in str(error.value)
    assert not arguments["out"].exists()


def test_a_failed_conversion_keeps_the_earlier_result(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    convert_coco(**arguments)
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files(arguments["out"])}
    _truncate(tmp_path / PNG)
    with pytest.raises(InputError):
        convert_coco(**arguments)
    assert before == {
        p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files(arguments["out"])
    }


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_interrupted_conversion_goes_on_and_keeps_finished_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make_coco(tmp_path)
    good = (tmp_path / "panoptic_val2017/000000000034.png").read_bytes()
    _truncate(tmp_path / "panoptic_val2017/000000000034.png")
    with pytest.raises(InputError):
        convert_coco(**arguments)
    (tmp_path / "panoptic_val2017/000000000034.png").write_bytes(good)
    converted: list[int] = []
    from possam.datasets.upstream import coco

    original = coco._convert

    def spy(task: Any, **kwargs: Any) -> Any:
        converted.append(task.id)
        return original(task, **kwargs)

    monkeypatch.setattr(coco, "_convert", spy)
    resumed = convert_coco(**arguments)
    assert converted == [34]
    fresh = convert_coco(**arguments | {"out": tmp_path / "fresh"})
    assert resumed["content"] == fresh["content"]
    assert not list(tmp_path.glob(".*partial*"))
    assert sorted(p.name for p in arguments["out"].iterdir()) == [
        "annotations.json", "instances.json", "manifest.json", "panoptic", "semantic",
    ]  # fmt: skip


def test_an_image_that_changed_since_the_interruption_is_converted_again(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    second = tmp_path / "panoptic_val2017/000000000034.png"
    good = second.read_bytes()
    _truncate(second)
    with pytest.raises(InputError):
        convert_coco(**arguments)
    second.write_bytes(good)
    ids = coco_ids()
    ids[0, 0] = 300
    save_rgb_ids(tmp_path / "panoptic_val2017/000000000012.png", ids)
    resumed = convert_coco(**arguments)
    fresh = convert_coco(**arguments | {"out": tmp_path / "fresh"})
    assert resumed["content"] == fresh["content"]
    assert resumed["histogram"]["pixels"] == [9, 29, 8]


def test_images_of_an_abandoned_conversion_do_not_stay(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path) | {"instances_json": None}
    (tmp_path / JPEG.replace("12.", "34.")).write_bytes(b"no image")
    with pytest.raises(InputError):
        convert_coco(**arguments)

    def keep_second(data: Any) -> None:
        data["images"], data["annotations"] = data["images"][1:], data["annotations"][1:]

    edit(arguments["panoptic_json"], keep_second)
    save_photo(tmp_path / JPEG.replace("12.", "34."), 4, 6)
    convert_coco(**arguments)
    for folder in ("panoptic", "semantic"):
        names = [path.name for path in (arguments["out"] / folder).iterdir()]
        assert names == ["000000000034.png"]
