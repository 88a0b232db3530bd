"""Pixel encodings, the reader of converted data sets, and the validator."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from possam.datasets.format import Category, ConvertedDataset
from possam.datasets.images import merge_maps
from possam.datasets.pixels import (
    decode_file,
    decode_ids,
    decode_semantic,
    encode_ids,
    encode_semantic,
    write_png,
)
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file
from tests.support.layouts import (
    convert_ade20k,
    convert_ade20k_full,
    convert_coco,
    convert_pascal_context,
    make_ade20k,
    make_ade20k_full,
    make_coco,
    make_pascal_context,
    save_ade_seg,
    save_photo,
    save_rgb_ids,
)

SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
NOWHERE = Path("map.png")


@given(arrays.arrays(np.int32, SHAPES, elements=st.integers(0, (1 << 24) - 1)))
def test_segment_ids_survive_their_encoding(ids: np.ndarray) -> None:
    pixels = encode_ids(ids)
    assert np.array_equal(decode_ids(pixels, NOWHERE), ids)
    wide = pixels.astype(int)
    assert np.array_equal(wide[..., 0] + 256 * wide[..., 1] + 65536 * wide[..., 2], ids)


@settings(deadline=None)
@given(st.data(), st.sampled_from([1, 150, 254, 255, 300]))
def test_semantic_labels_survive_a_png(data: st.DataObject, classes: int) -> None:
    dtype = data.draw(st.sampled_from([np.int16, np.int32, np.int64]))
    labels = data.draw(arrays.arrays(dtype, SHAPES, elements=st.integers(-1, classes - 1)))
    pixels = encode_semantic(labels, classes)
    assert pixels.dtype == (np.uint8 if classes < 255 else np.uint16)
    assert np.array_equal(decode_semantic(pixels, classes, NOWHERE), labels)


@pytest.mark.parametrize("classes", [150, 847])
def test_png_files_keep_labels(tmp_path: Path, classes: int) -> None:
    labels = np.random.default_rng(0).integers(-1, classes, (13, 7))
    digest = write_png(tmp_path / "a.png", encode_semantic(labels, classes))
    pixels, found = decode_file(tmp_path / "a.png")
    assert digest == found == sha256_file(tmp_path / "a.png")
    assert np.array_equal(decode_semantic(pixels, classes, NOWHERE), labels)


def test_values_that_are_no_class_are_refused() -> None:
    with pytest.raises(InputError, match="value 150"):
        decode_semantic(np.full((2, 2), 150, dtype=np.uint8), 150, NOWHERE)


CATEGORIES = [
    Category(index=i, names=(str(i),), is_thing=i % 2 == 1, upstream_id=i + 1) for i in range(4)
]


@given(st.data())
def test_merged_maps_follow_the_rules_pixel_by_pixel(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    labels = data.draw(arrays.arrays(np.int32, shape, elements=st.integers(-1, 3)))
    keys = st.sampled_from([0, 0, 1 * 256 + 1, 1 * 256 + 2, 3 * 256 + 1, 3 * 256 + 255])
    instances = data.draw(arrays.arrays(np.int32, shape, elements=keys))
    ids, classes = merge_maps(labels, instances, CATEGORIES)
    assert set(np.unique(ids).tolist()) - {0} == set(classes) == set(range(1, len(classes) + 1))
    for y, x in np.ndindex(*shape):
        if instances[y, x]:
            assert classes[ids[y, x]] == instances[y, x] // 256
        elif labels[y, x] >= 0 and not CATEGORIES[labels[y, x]].is_thing:
            assert classes[ids[y, x]] == labels[y, x]
        else:
            assert ids[y, x] == 0
    # One segment an instance, one a stuff class.
    pairs = {(int(ids[p]), int(instances[p])) for p in np.ndindex(*shape) if instances[p]}
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs)


def test_opening_needs_a_complete_unchanged_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="convert it first"):
        ConvertedDataset.open(tmp_path)
    out = make_coco(tmp_path)["out"]
    convert_coco(**make_coco(tmp_path))
    annotations = out / "annotations.json"
    text = annotations.read_text()
    annotations.write_text(text.replace('"iscrowd": 1', '"iscrowd": 0'))
    with pytest.raises(InputError, match="changed since"):
        ConvertedDataset.open(out)
    annotations.write_text(text)
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": "other"}))
    with pytest.raises(InputError, match="format"):
        ConvertedDataset.open(out)


def test_a_moved_project_still_finds_its_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    convert_coco(**make_coco(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    assert ConvertedDataset.open(tmp_path / "b" / "converted").image(1).shape == (4, 6, 3)


def test_images_of_another_size_are_refused_when_read(tmp_path: Path) -> None:
    arguments = make_coco(tmp_path)
    convert_coco(**arguments)
    save_photo(arguments["images"] / "000000000012.jpg", 5, 6)
    with pytest.raises(InputError, match="6x5 pixels"):
        ConvertedDataset.open(arguments["out"]).image(0)


def _rewrite(out: Path, file: str, change: Callable[[Any], None]) -> None:
    """Change one of the JSON files and make its hash in the manifest fit again."""
    data = json.loads((out / file).read_text())
    change(data)
    (out / file).write_text(json.dumps(data))
    if file != "manifest.json":
        manifest = json.loads((out / "manifest.json").read_text())
        manifest["sha256"][file.removesuffix(".json")] = sha256_file(out / file)
        (out / "manifest.json").write_text(json.dumps(manifest))


def _segment(key: str, value: Any) -> Callable[[Path], None]:
    def change(data: Any) -> None:
        data["annotations"][0]["segments_info"][0][key] = value

    return lambda out: _rewrite(out, "annotations.json", change)


PNG = "ADE_val_00000001.png"
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "area": (_segment("area", 1), "area and box"),
    "box": (_segment("bbox", [0, 0, 1, 1]), "area and box"),
    "id": (_segment("id", 77), "only in the"),
    "segment twice": (
        lambda o: _rewrite(
            o,
            "annotations.json",
            lambda d: d["annotations"][0]["segments_info"].append(
                d["annotations"][0]["segments_info"][0]
            ),
        ),
        "segment id comes twice",
    ),
    "class": (_segment("category_id", 2), "histogram.segments"),
    "class beyond the last": (_segment("category_id", 99), "no class 99"),
    "class below the first": (_segment("category_id", -1), "no class -1"),
    "crowd": (_segment("iscrowd", 1), "counts.crowd"),
    "panoptic pixels": (
        lambda o: save_rgb_ids(o / "panoptic" / PNG, np.ones((3, 5), int)),
        "panoptic files",
    ),
    "semantic pixels": (
        lambda o: Image.fromarray(np.zeros((3, 5), np.uint8)).save(o / "semantic" / PNG),
        "histogram.pixels",
    ),
    "all void": (
        lambda o: Image.fromarray(np.full((3, 5), 255, np.uint8)).save(o / "semantic" / PNG),
        "1 of 1 images have no labelled pixel",
    ),
    "no class": (
        lambda o: Image.fromarray(np.full((3, 5), 9, np.uint8)).save(o / "semantic" / PNG),
        "value 9 is no class",
    ),
    "semantic of other size": (
        lambda o: Image.fromarray(np.zeros((3, 4), np.uint8)).save(o / "semantic" / PNG),
        "4x3 pixels",
    ),
    "missing PNG": (lambda o: (o / "semantic" / PNG).unlink(), "no such file"),
    "stray PNG": (lambda o: (o / "semantic" / "x.png").write_bytes(b""), "belongs to no image"),
    "image": (
        lambda o: save_photo(o.parent / "images/validation/ADE_val_00000001.jpg", 3, 5, 9),
        "images files",
    ),
    "instance area": (
        lambda o: _rewrite(o, "instances.json", lambda d: d["annotations"][0].update(area=9)),
        "area 9",
    ),
    "instance class": (
        lambda o: _rewrite(
            o, "instances.json", lambda d: d["annotations"][0].update(category_id=0)
        ),
        "no thing class",
    ),
    "instance twice": (
        lambda o: _rewrite(
            o, "instances.json", lambda d: d["annotations"].append(d["annotations"][0])
        ),
        "each once",
    ),
    "instance missing": (
        lambda o: _rewrite(o, "instances.json", lambda d: d["annotations"].pop()),
        "manifest says otherwise",
    ),
    "instance image": (
        lambda o: _rewrite(o, "instances.json", lambda d: d["annotations"][0].update(image_id=5)),
        "that of image 5",
    ),
    "image twice": (
        lambda o: _rewrite(o, "annotations.json", lambda d: d["images"].append(d["images"][0])),
        "comes twice",
    ),
    "histogram": (
        lambda o: _rewrite(
            o, "manifest.json", lambda d: d["histogram"]["pixels"].__setitem__(0, 9)
        ),
        "histogram.pixels",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_the_validator_finds_every_kind_of_damage(tmp_path: Path, case: str) -> None:
    arguments = make_ade20k(tmp_path) | {"instances_root": None}
    convert_ade20k(**arguments)
    out = arguments["out"]
    assert validate_dataset(out)["void_images"] == []
    damage, fault = FAULTS[case]
    damage(out)
    with pytest.raises(InputError, match=fault) as error:
        validate_dataset(out)
    assert str(out) in str(error.value)


def test_classes_without_pixels_and_void_images_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = make_ade20k(tmp_path, count=2)
    (tmp_path / "names.txt").write_text("1:wall\n2:bed\n3:sky\n4:lamp\n5:moon\n")
    (tmp_path / "table.csv").write_text(
        "scene_parse_index,instance_index,name\n1,,wall\n2,1,bed\n3,,sky\n4,2,lamp\n5,,moon\n"
    )
    for folder, shape in (("annotations", (3, 5)), ("annotations_instance", (3, 5, 3))):
        path = tmp_path / folder / "validation" / "ADE_val_00000002.png"
        Image.fromarray(np.zeros(shape, np.uint8)).save(path)
    convert_ade20k(**arguments)
    monkeypatch.setattr("possam.datasets.validate.CHUNK", 1)  # both workers get an image
    report = validate_dataset(arguments["out"], workers=2)
    assert report["absent_classes"] == ["moon"]
    assert report["void_images"] == report["empty_images"] == [2]
    assert report["counts"]["images"] == 2


def test_a_data_set_that_is_mostly_void_is_refused(tmp_path: Path) -> None:
    """Labels of other classes than the table's leave nothing but void: no silent success."""
    arguments = make_ade20k_full(tmp_path, count=3)
    for number in (1, 3):
        stem = f"images/ADE/validation/urban/street/ADE_val_{number:08d}_seg.png"
        save_ade_seg(tmp_path / stem, np.full((3, 5), 2311))
    convert_ade20k_full(**arguments)
    with pytest.raises(InputError, match="2 of 3 images have no labelled pixel") as error:
        validate_dataset(arguments["out"])
    assert "2 of 3 images have no segment" in str(error.value)


def test_maps_that_disagree_on_stuff_are_refused(tmp_path: Path) -> None:
    """Both maps are of one size, with the right counts, but sky and wall are exchanged."""
    convert_pascal_context(**make_pascal_context(tmp_path))
    out = tmp_path / "converted"
    path = out / "semantic" / "2008_000001.png"
    with Image.open(path) as image:
        labels = np.asarray(image).copy()
    labels[0, 0], labels[1, 0] = labels[1, 0], labels[0, 0]
    Image.fromarray(labels).save(path)
    with pytest.raises(InputError, match=r"2008_000001\.png: the classes of 2 pixels are not"):
        validate_dataset(out)


def test_images_that_a_data_set_holds_itself_are_checked(tmp_path: Path) -> None:
    out = make_ade20k_full(tmp_path)["out"]
    convert_ade20k_full(**make_ade20k_full(tmp_path))
    stray = out / "images" / "ADE_val_00000009.jpg"
    stray.write_bytes(b"")
    with pytest.raises(InputError, match=r"images/ADE_val_00000009\.jpg: belongs to no image"):
        validate_dataset(out)
    stray.unlink()
    save_photo(out / "images" / "ADE_val_00000001.jpg", 3, 5, seed=77)
    with pytest.raises(InputError, match="images files are not those that were converted"):
        validate_dataset(out)
