"""ADE20K conversion: hand-made miniature, real samples, and bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_length

from possam.datasets.format import ConvertedDataset
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from tests.support.layouts import ade_instances, ade_labels, convert_ade20k, make_ade20k, save_photo
from tests.support.parity_report import Parity

FACTS = Path(__file__).parents[2] / "params" / "facts" / "ade20k_instance_classes.csv"


def test_things_come_from_instances_stuff_from_labels_and_instances_win(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path)
    manifest = convert_ade20k(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    assert [c.is_thing for c in dataset.categories] == [False, True, False, True]
    # wall 1, sky 2, bed 1 -> 3, bed 2 -> 4 (also over a sky pixel), lamp -> 5; the bed pixel
    # without an instance is void.
    assert dataset.panoptic(0).tolist() == [
        [2, 2, 2, 4, 0],
        [1, 3, 3, 4, 5],
        [1, 1, 0, 4, 5],
    ]
    found = {s.id: (s.category, s.area, s.bbox) for s in dataset.images[0].segments}
    assert found == {
        1: (0, 3, (0, 1, 2, 2)),
        2: (2, 3, (0, 0, 3, 1)),
        3: (1, 2, (1, 1, 2, 1)),
        4: (1, 3, (3, 0, 1, 3)),
        5: (3, 2, (4, 1, 1, 2)),
    }
    assert np.array_equal(dataset.semantic(0), ade_labels().astype(int) - 1)
    assert manifest["counts"] == {
        "images": 1, "segments": 5, "things": 3, "stuff": 2, "crowd": 0, "instances": 3,
    }  # fmt: skip
    assert manifest["histogram"]["pixels"] == [3, 5, 4, 2]
    masks = [run_length.decode(e["segmentation"]) for e in dataset.instances()["annotations"]]
    pixels = ade_instances()
    assert np.array_equal(masks[1] > 0, (pixels[..., 0] == 1) & (pixels[..., 1] == 2))
    validate_dataset(arguments["out"])


def test_instances_of_two_classes_may_share_a_number(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path)
    convert_ade20k(**arguments)
    segments = ConvertedDataset.open(arguments["out"]).images[0].segments
    assert [s.category for s in segments if s.area == 2] == [1, 3]


def test_without_instances_each_thing_class_is_one_segment_and_the_manifest_says_so(
    tmp_path: Path,
) -> None:
    arguments = make_ade20k(tmp_path) | {"instances_root": None}
    manifest = convert_ade20k(**arguments)
    assert manifest["instances"] == "none (semantic regions)"
    dataset = ConvertedDataset.open(arguments["out"])
    by_class = {s.category: s.id for s in dataset.images[0].segments}
    semantic, panoptic = dataset.semantic(0), dataset.panoptic(0)
    assert np.array_equal(semantic, ade_labels().astype(int) - 1)
    assert set(by_class) == {0, 1, 2, 3}
    for category, key in by_class.items():
        assert np.array_equal(panoptic == key, semantic == category)
    validate_dataset(arguments["out"])


@pytest.mark.parity("ade20k")
def test_real_samples_keep_every_pixels_class(shared: Path, tmp_path: Path, parity: Parity) -> None:
    root = shared / "samples" / "ADEChallengeData2016"
    manifest = convert_ade20k(
        root=root,
        instances_root=None,
        class_names=shared / "upstream/openseg_labels/ade20k_150_with_prompt_eng.txt",
        instance_classes_csv=FACTS,
        split="val",
        out=tmp_path / "out",
        workers=1,
    )
    assert manifest["num_classes"] == 150
    dataset = ConvertedDataset.open(tmp_path / "out")
    assert sum(category.is_thing for category in dataset.categories) == 100
    assert len(dataset) == 2
    for position, record in enumerate(dataset.images):
        with Image.open(root / "annotations/validation" / f"{record.file.stem}.png") as image:
            upstream = np.asarray(image).astype(int)
        parity.equal(dataset.semantic(position) + 1, upstream)
        classes = {segment.id: segment.category for segment in record.segments} | {0: -1}
        panoptic = dataset.panoptic(position)
        seen = np.vectorize(classes.get)(panoptic)
        parity.equal(seen + 1, upstream)
        parity.equal(
            {segment.category + 1: segment.area for segment in record.segments},
            {label: int((upstream == label).sum()) for label in set(upstream.flat) - {0}},
        )
    validate_dataset(tmp_path / "out")


def test_the_table_of_instance_classes_matches_the_shared_facts(shared: Path) -> None:
    assert FACTS.read_bytes() == (shared / "facts" / "ade150_instances.csv").read_bytes()


LABEL = "annotations/validation/ADE_val_00000001.png"
INSTANCE = "annotations_instance/validation/ADE_val_00000001.png"
JPEG = "images/validation/ADE_val_00000001.jpg"


def _paint(path: str, make: Callable[[], np.ndarray], change: Any) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        pixels = make()
        change(pixels)
        Image.fromarray(pixels).save(root / path)

    return damage


def _truncate(path: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: len(content) * 2 // 3])

    return damage


BAD = {
    "unknown label": (
        _paint(LABEL, ade_labels, lambda p: p.__setitem__((0, 0), 5)),
        "label 5 is no class",
    ),
    "unknown instance class": (
        _paint(INSTANCE, ade_instances, lambda p: p.__setitem__((0, 0), (3, 1, 0))),
        "instance class 3",
    ),
    "instance without class": (
        _paint(INSTANCE, ade_instances, lambda p: p.__setitem__((0, 0), (0, 1, 0))),
        "instance class 0",
    ),
    "label map in colour": (_paint(LABEL, ade_instances, lambda p: None), "one 8-bit channel"),
    "instance map in grey": (_paint(INSTANCE, ade_labels, lambda p: None), "8-bit RGB"),
    "label of other size": (lambda r: Image.fromarray(ade_labels()[:2]).save(r / LABEL), "5x2"),
    "instances of other size": (
        lambda r: Image.fromarray(ade_instances()[:2]).save(r / INSTANCE),
        "5x2",
    ),
    "image of other size": (lambda r: save_photo(r / JPEG, 3, 4), "4x3"),
    "truncated label": (_truncate(LABEL), "truncated"),
    "truncated image": (_truncate(JPEG), "truncated"),
    "no label": (lambda r: (r / LABEL).unlink(), "missing"),
    "no instances": (lambda r: (r / INSTANCE).unlink(), "missing"),
    "label of no image": (
        lambda r: Image.fromarray(ade_labels()).save(r / LABEL.replace("01.", "02.")),
        "annotates it",
    ),
    "full release": (
        lambda r: (r / "images" / "ADE" / "validation").mkdir(parents=True),
        "full ADE20K release",
    ),
    "no number": (
        lambda r: [(r / p).rename((r / p).with_stem("x")) for p in (JPEG, LABEL, INSTANCE)],
        "number",
    ),
    "table too short": (
        lambda r: (r / "table.csv").write_text("scene_parse_index,instance_index,name\n1,,wall\n"),
        "1..4",
    ),
    "table with gap": (
        lambda r: (r / "table.csv").write_text((r / "table.csv").read_text().replace("4,2", "4,3")),
        "1..M",
    ),
    "table columns": (lambda r: (r / "table.csv").write_text("a,b\n1,2\n"), "columns"),
    "names with gap": (lambda r: (r / "names.txt").write_text("1:wall\n3:sky\n"), "without gaps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    arguments = make_ade20k(tmp_path)
    damage, fault = BAD[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=fault) as error:
        convert_ade20k(**arguments)
    assert str(tmp_path) in str(error.value)
    assert not arguments["out"].exists()


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path, count=20)
    one = convert_ade20k(**arguments)
    two = convert_ade20k(**arguments | {"workers": 2, "out": tmp_path / "two"})
    assert one["content"] == two["content"]
    assert [r.id for r in ConvertedDataset.open(tmp_path / "two").images] == list(range(1, 21))


def test_an_error_in_a_worker_process_arrives_as_an_input_error(tmp_path: Path) -> None:
    arguments = make_ade20k(tmp_path, count=20) | {"workers": 2}
    _truncate(LABEL.replace("01.", "17."))(tmp_path)
    with pytest.raises(InputError, match="ADE_val_00000017"):
        convert_ade20k(**arguments)
    assert not arguments["out"].exists()
