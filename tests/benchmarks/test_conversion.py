"""The benchmark of the conversion: its drawings, and that both ways agree on them."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from benchmarks.conversion import (
    cases,
    draw_scene,
    panoptic_difference,
    semantic_difference,
    write_ade20k,
)
from benchmarks.harness import measure
from benchmarks.naive_conversion import prepare_ade20k
from possam.datasets.format import ConvertedDataset
from possam.datasets.validate import validate_dataset
from tests.support.layouts import ADE_NAMES, ADE_TABLE, convert_ade20k, save_photo, write

SIZE = (48, 64)


def test_a_tiny_run_finds_no_difference_in_any_case() -> None:
    found = [
        measure(case, repeats=1, report=lambda line: None)
        for case in cases(images=2, ade20k_size=SIZE, coco_size=SIZE)
    ]
    assert [case["name"] for case in found] == [
        "conversion/ade20k",
        "conversion/ade20k_validated",
        "conversion/coco",
    ]
    assert [case["target"] for case in found] == [5.0, None, None]
    assert all(case["error"] == 0 and case["items"] == 2 for case in found)
    json.dumps(found)


def test_scenes_are_functions_of_their_seed_and_hold_what_they_say() -> None:
    one, again, other = (draw_scene(seed, size=SIZE) for seed in (1, 1, 2))
    assert np.array_equal(one.labels, again.labels) and np.array_equal(one.photo, again.photo)
    assert not np.array_equal(one.labels, other.labels)
    assert one.photo.shape == (*SIZE, 3) and one.photo.std() > 20
    assert ((one.kinds > 0) == (one.numbers > 0)).all()
    thing = one.numbers > 0
    assert (one.labels[thing] == 50 + one.kinds[thing]).all()
    assert (one.labels[~thing] <= 50).all() and (one.labels == 0).any()
    assert len(np.unique(one.labels[~thing])) > 4 and len(np.unique(one.numbers)) > 5


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_the_loop_over_segments_agrees_with_the_conversion(data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8))
    labels = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 4)))
    kinds = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 2)))
    ids = data.draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255])))
    ids[kinds == 0] = 0
    pixels = np.stack([kinds, ids, np.zeros_like(ids)], axis=-1)
    with tempfile.TemporaryDirectory() as folder:
        root, name = Path(folder), "validation/ADE_val_00000001"
        save_photo(root / f"images/{name}.jpg", *shape)
        for kind, content in (("annotations", labels), ("annotations_instance", pixels)):
            path = root / kind / f"{name}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(content).save(path)
        write(root / "names.txt", ADE_NAMES)
        write(root / "table.csv", ADE_TABLE)
        convert_ade20k(
            root=root,
            instances_root=root / "annotations_instance",
            class_names=root / "names.txt",
            instance_classes_csv=root / "table.csv",
            split="val",
            out=root / "ours",
            workers=1,
        )
        prepare_ade20k(
            labels=root / "annotations/validation",
            instances=root / "annotations_instance/validation",
            instance_classes={1: 1, 2: 3},
            out=root / "theirs",
        )
        assert panoptic_difference(root / "ours", root / "theirs") == 0
        assert semantic_difference(root / "ours", root / "theirs") == 0
        mine = ConvertedDataset.open(root / "ours").instances()["annotations"]
        other = json.loads((root / "theirs/instances.json").read_text())["annotations"]
        assert [{**entry, "image_id": 0} for entry in mine] == other


def test_differences_are_shares_of_pixels(tmp_path: Path) -> None:
    arguments = write_ade20k(tmp_path / "upstream", images=1, size=SIZE)
    for name in ("a", "b"):
        convert_ade20k(**arguments, out=tmp_path / name, workers=1)
    (tmp_path / "b/annotations.json").rename(tmp_path / "b/panoptic.json")
    assert panoptic_difference(tmp_path / "a", tmp_path / "b") == 0
    assert semantic_difference(tmp_path / "a", tmp_path / "b") == 0
    (path,) = (tmp_path / "b/panoptic").iterdir()
    pixels = np.array(Image.open(path))
    ids = pixels[..., 0]
    values, counts = np.unique(ids[ids > 0], return_counts=True)
    pixels[ids == values[0], 0] = 0
    Image.fromarray(pixels).save(path)
    share = panoptic_difference(tmp_path / "a", tmp_path / "b")
    assert share == pytest.approx(counts[0] / ids.size)
    (path,) = (tmp_path / "b/semantic").iterdir()
    changed = np.array(Image.open(path))
    changed[:12] = 200
    Image.fromarray(changed).save(path)
    assert semantic_difference(tmp_path / "a", tmp_path / "b") == pytest.approx(12 / SIZE[0])


def test_the_drawn_data_are_valid(tmp_path: Path) -> None:
    arguments = write_ade20k(tmp_path / "upstream", images=3, size=SIZE)
    convert_ade20k(**arguments, out=tmp_path / "out", workers=1)
    counts = validate_dataset(tmp_path / "out")["counts"]
    assert counts["images"] == 3 and counts["things"] > 15 and counts["stuff"] > 12
