"""The full ADE20K release: hand-made miniature, resizing, the real sample, and bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageDraw

from possam.datasets.catalogue import datasets
from possam.datasets.class_names import read_class_table
from possam.datasets.format import ConvertedDataset
from possam.datasets.images import limited_size, resize_image, resize_labels
from possam.datasets.pixels import decode_file
from possam.datasets.upstream.ade20k_full import read_indices
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from tests.support.layouts import (
    FULL_INDICES,
    convert_ade20k,
    convert_ade20k_full,
    full_indices,
    make_ade20k,
    make_ade20k_full,
    save_ade_seg,
    save_photo,
)
from tests.support.parity_report import Parity

FACTS = Path(__file__).parents[2] / "params" / "facts" / "ade20k_full_classes.csv"
STEM = "images/ADE/validation/urban/street/ADE_val_00000001"
JPEG, SEG = f"{STEM}.jpg", f"{STEM}_seg.png"


def test_miniature_is_converted_as_computed_by_hand(tmp_path: Path) -> None:
    arguments = make_ade20k_full(tmp_path)
    manifest = convert_ade20k_full(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    assert (dataset.name, dataset.split, len(dataset)) == ("ade20k_full", "val", 1)
    assert dataset.vocabulary == [("wall",), ("sky", "heaven"), ("lamp",)]
    assert [c.upstream_id for c in dataset.categories] == [2978, 2420, 1395]
    assert not any(c.is_thing for c in dataset.categories)
    assert dataset.semantic(0).tolist() == [
        [1, 1, 1, -1, -1],
        [0, 2, 2, 0, 0],
        [0, 2, 2, 0, 0],
    ]
    assert np.array_equal(dataset.panoptic(0), dataset.semantic(0) + 1)
    found = {s.id: (s.category, s.area, s.bbox) for s in dataset.images[0].segments}
    assert found == {1: (0, 6, (0, 1, 5, 2)), 2: (1, 3, (0, 0, 3, 1)), 3: (2, 4, (1, 1, 2, 2))}
    assert manifest["instances"].startswith("none (semantic only")
    assert manifest["counts"] == {
        "images": 1, "segments": 3, "things": 0, "stuff": 3, "crowd": 0, "instances": 0,
    }  # fmt: skip
    assert dataset.instances()["annotations"] == []
    assert validate_dataset(arguments["out"])["absent_classes"] == []


def test_small_images_are_kept_bit_for_bit_in_the_data_set(tmp_path: Path) -> None:
    arguments = make_ade20k_full(tmp_path)
    assert convert_ade20k_full(**arguments)["image_root"] == "images"
    kept = arguments["out"] / "images" / "ADE_val_00000001.jpg"
    assert kept.read_bytes() == (tmp_path / JPEG).read_bytes()
    (tmp_path / JPEG).unlink()
    arguments["out"].rename(tmp_path / "moved")
    assert ConvertedDataset.open(tmp_path / "moved").image(0).shape == (3, 5, 3)
    validate_dataset(tmp_path / "moved")


def test_large_images_are_resized_with_their_labels(tmp_path: Path) -> None:
    arguments = make_ade20k_full(tmp_path)
    indices = np.full((768, 1000), FULL_INDICES["wall"])
    indices[:, 500:] = FULL_INDICES["sky"]
    save_photo(tmp_path / JPEG, 768, 1000)
    save_ade_seg(tmp_path / SEG, indices)
    convert_ade20k_full(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    record = dataset.images[0]
    assert (record.height, record.width) == (512, 667)
    # New column x shows old column floor(1000 x / 667): 500 from x = 334 on.
    expected = np.zeros((512, 667), dtype=int)
    expected[:, 334:] = 1
    assert np.array_equal(dataset.semantic(0), expected)
    ours = dataset.image(0).astype(int)
    theirs = resize_image(decode_file(tmp_path / JPEG)[0], 512, 667).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours.mean((0, 1)) - theirs.mean((0, 1))).max() < 1.5
    validate_dataset(arguments["out"])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1536, 2048), (512, 683)),
        ((2048, 1536), (683, 512)),
        ((513, 513), (512, 512)),
        ((512, 4000), (512, 4000)),
        ((4000, 300), (4000, 300)),
        ((600, 700), (512, 597)),
    ],
)
def test_the_shorter_side_is_at_most_512(old: tuple[int, int], new: tuple[int, int]) -> None:
    assert limited_size(*old, shorter_side=512) == new


PICTURES = arrays.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3)))


@given(PICTURES, st.integers(1, 20), st.integers(1, 20))
def test_images_are_resized_as_torch_does_without_antialiasing(
    image: np.ndarray, height: int, width: int
) -> None:
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    theirs = torch.nn.functional.interpolate(pixels, (height, width), mode="bilinear")
    ours = resize_image(image, height, width)
    assert ours.dtype == np.uint8 and ours.shape == (height, width, 3)
    difference = np.abs(ours - theirs[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 0.5 + 1e-3, "no more than rounding to whole grey levels"


@given(PICTURES, st.integers(1, 20), st.integers(1, 20))
def test_labels_are_resized_to_the_pixel_at_or_before(
    image: np.ndarray, height: int, width: int
) -> None:
    labels = image[..., 0]
    ours = resize_labels(labels, height, width)
    assert ours.shape == (height, width)
    for y in range(height):
        for x in range(width):
            old = (y * labels.shape[0] // height, x * labels.shape[1] // width)
            assert ours[y, x] == labels[old]


@pytest.fixture(scope="module")
def sample(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertedDataset:
    out = tmp_path_factory.mktemp("ade20k_full") / "train"
    convert_ade20k_full(
        root=shared / "samples" / "ADE20K_2021_17_01",
        class_names=shared / "upstream/openseg_labels/ade20k_847_with_prompt_eng.txt",
        classes_csv=FACTS,
        split="train",
        out=out,
        workers=1,
    )
    return ConvertedDataset.open(out)


def _upstream(shared: Path) -> tuple[np.ndarray, list[dict[str, Any]], Path]:
    """Instance channel of the sample's label map, its objects, and the map's path."""
    (path,) = (shared / "samples" / "ADE20K_2021_17_01").rglob("ADE_train_*.json")
    seg = path.with_name(f"{path.stem}_seg.png")
    with Image.open(seg) as image:
        blue = np.asarray(image)[..., 2].astype(int)
    return blue, json.loads(path.read_text())["annotation"]["object"], seg


def _instance_of(objects: list[dict[str, Any]], blue: np.ndarray) -> dict[int, dict[str, Any]]:
    """Blue value of each whole object: the one that overlaps its polygon best."""
    found: dict[int, dict[str, Any]] = {}
    for entry in objects:
        canvas = Image.new("L", blue.shape[::-1])
        corners = zip(entry["polygon"]["x"], entry["polygon"]["y"], strict=True)
        ImageDraw.Draw(canvas).polygon(list(corners), fill=1, outline=1)
        inside = np.asarray(canvas) > 0
        shared_pixels = np.bincount(blue[inside], minlength=256)
        union = inside.sum() + np.bincount(blue.ravel(), minlength=256) - shared_pixels
        overlap = shared_pixels / union
        overlap[0] = 0
        found[int(overlap.argmax())] = entry
    return found


@pytest.mark.parity("ade20k_full")
def test_every_object_of_the_sample_carries_its_evaluated_class(
    shared: Path, sample: ConvertedDataset, parity: Parity
) -> None:
    blue, objects, seg = _upstream(shared)
    whole = [entry for entry in objects if entry["parts"]["part_level"] == 0]
    instances = _instance_of(whole, blue)
    assert len(whole) == 51 and set(instances) == set(np.unique(blue)) - {0}
    table = {int(row["ade_index"]): row for row in read_class_table(FACTS, _columns())}
    index_of = {category.upstream_id: category for category in sample.categories}
    indices, semantic = read_indices(seg), sample.semantic(0)
    height, width = semantic.shape
    rows, columns = (
        np.floor(np.arange(new) * (old / new)).astype(int)
        for new, old in zip((height, width), blue.shape, strict=True)
    )
    small = blue[np.ix_(rows, columns)]
    for value, entry in instances.items():
        category = index_of[entry["name_ndx"]]
        parity.equal(np.unique(indices[blue == value]), np.array([entry["name_ndx"]]))
        parity.equal(np.unique(semantic[small == value]), np.array([category.index]))
        parity.equal(table[entry["name_ndx"]]["name"], entry["name"])
    # Pixels of no object are void, and a class's area is that of its objects.
    assert np.array_equal(semantic == -1, small == 0)
    expected: dict[int, int] = {}
    for value, entry in instances.items():
        index = index_of[entry["name_ndx"]].index
        expected[index] = expected.get(index, 0) + int((small == value).sum())
    parity.equal({s.category: s.area for s in sample.images[0].segments}, expected)


@pytest.mark.parity("ade20k_full")
def test_parts_of_the_sample_have_no_pixel(
    shared: Path, sample: ConvertedDataset, parity: Parity
) -> None:
    """The bus's door is a part; "door" is an evaluated class."""
    _, objects, _ = _upstream(shared)
    whole = {entry["name_ndx"] for entry in objects if entry["parts"]["part_level"] == 0}
    parts = {entry["name_ndx"] for entry in objects if entry["parts"]["part_level"] > 0} - whole
    evaluated = {c.upstream_id: c.index for c in sample.categories}
    checked = [evaluated[index] for index in parts if index in evaluated]
    assert evaluated[774] in checked
    counts = sample.manifest["histogram"]["pixels"]
    for index in checked:
        parity.equal(counts[index], 0)


def _columns() -> tuple[str, ...]:
    return ("train_id", "ade_index", "name")


def test_the_sample_is_valid_and_has_847_classes(sample: ConvertedDataset) -> None:
    assert len(sample.categories) == 847
    assert len(validate_dataset(sample.directory)["absent_classes"]) == 834


def test_the_table_of_classes_matches_the_shared_facts(shared: Path) -> None:
    assert FACTS.read_bytes() == (shared / "facts" / "ade847.csv").read_bytes()


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    arguments = make_ade20k_full(tmp_path, count=20)
    one = convert_ade20k_full(**arguments)
    two = convert_ade20k_full(**arguments | {"workers": 2, "out": tmp_path / "two"})
    assert one == two
    assert [r.id for r in ConvertedDataset.open(tmp_path / "two").images] == list(range(1, 21))


def test_an_interrupted_conversion_goes_on_with_its_images(tmp_path: Path) -> None:
    arguments = make_ade20k_full(tmp_path, count=3)
    second = tmp_path / SEG.replace("01_", "03_")
    good = second.read_bytes()
    second.write_bytes(good[:40])
    with pytest.raises(InputError):
        convert_ade20k_full(**arguments)
    staged = tmp_path / ".converted.partial" / "images"
    assert len(list(staged.iterdir())) == 2
    (staged / "ADE_val_00000001.jpg").write_bytes(b"damaged since")
    (staged / "ADE_val_00000009.jpg").write_bytes(b"of an image that is gone")
    second.write_bytes(good)
    resumed = convert_ade20k_full(**arguments)
    assert resumed == convert_ade20k_full(**arguments | {"out": tmp_path / "fresh"})
    validate_dataset(arguments["out"])


def _truncate(path: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) * 2 // 3])

    return damage


def _table(text: str) -> Callable[[Path], object]:
    return lambda root: (root / "table.csv").write_text(text)


HEAD = "train_id,ade_index,name\n"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated label": (_truncate(SEG), "truncated"),
    "truncated image": (_truncate(JPEG), "truncated"),
    "no label": (lambda r: (r / SEG).unlink(), "_seg.png is missing"),
    "no image": (lambda r: (r / JPEG).unlink(), "no file ADE_val_"),
    "label of no image": (
        lambda r: save_ade_seg(r / SEG.replace("01_", "02_"), full_indices()),
        "annotates no image",
    ),
    "label of other size": (lambda r: save_ade_seg(r / SEG, full_indices()[:2]), "5x2"),
    "image of other size": (lambda r: save_photo(r / JPEG, 3, 4), "5x3.*4x3"),
    "label map of the 150 classes": (
        lambda r: Image.fromarray(np.ones((3, 5), np.uint8)).save(r / SEG),
        "Labels of ADEChallengeData2016 cannot be used",
    ),
    "image twice": (
        lambda r: save_photo(r / JPEG.replace("street", "road"), 3, 5),
        "has the same name",
    ),
    "no number": (
        lambda r: [(r / p).rename(r / p.replace("00000001", "x")) for p in (JPEG, SEG)],
        "number",
    ),
    "table too short": (_table(HEAD + "0,2978,wall\n"), r"0\.\.2"),
    "index twice": (_table(HEAD + "0,7,wall\n1,7,sky\n2,8,lamp\n"), "ade_index 7"),
    "index zero": (_table(HEAD + "0,0,wall\n1,7,sky\n2,8,lamp\n"), "ade_index 0"),
    "index too large": (_table(HEAD + "0,6656,wall\n1,7,sky\n2,8,lamp\n"), "1..6655"),
    "index no number": (_table(HEAD + "0,x,wall\n1,7,sky\n2,8,lamp\n"), "whole number"),
    "table columns": (_table("a,b\n1,2\n"), "columns"),
    "table row": (_table(HEAD + "0,1\n"), "line 2 has 2 cells"),
    "names with gap": (lambda r: (r / "names.txt").write_text("1:wall\n3:sky\n"), "without gaps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    arguments = make_ade20k_full(tmp_path)
    damage, fault = BAD[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=fault) as error:
        convert_ade20k_full(**arguments)
    assert str(tmp_path) in str(error.value)
    assert not arguments["out"].exists()


def test_one_release_of_ade20k_is_not_taken_for_the_other(tmp_path: Path) -> None:
    small, full = make_ade20k(tmp_path / "150"), make_ade20k_full(tmp_path / "847")
    with pytest.raises(InputError, match=r"scene parsing release.*asset ade20k_full"):
        convert_ade20k_full(**full | {"root": small["root"]})
    with pytest.raises(InputError, match=r"full ADE20K release.*asset ade20k,"):
        convert_ade20k(**small | {"root": full["root"]})
    with pytest.raises(InputError, match="'test' of ADE20K does not exist; valid: train, val"):
        convert_ade20k_full(**full | {"split": "test"})


def test_images_that_are_larger_than_the_protocol_s_are_faults(tmp_path: Path) -> None:
    faults = datasets()["ade20k_full"].faults
    assert faults is not None
    out = make_ade20k_full(tmp_path, count=2)["out"]
    convert_ade20k_full(**make_ade20k_full(tmp_path, count=2))
    dataset = ConvertedDataset.open(out)
    assert faults(dataset) == []
    validate_dataset(out, more=faults)
    large = replace(dataset.images[1], height=513, width=700)
    (fault,) = faults(replace(dataset, images=[dataset.images[0], large]))
    assert "ADE_val_00000002.jpg: 700x513 pixels; the shorter side must be at most 512" in fault
    with pytest.raises(InputError, match=r"street: too few\n.*: convert the data set again"):
        validate_dataset(out, more=lambda dataset: ["street: too few"])
