"""PASCAL Context 459: hand-made miniature, label maps in the upstream layout, and bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat

from possam.datasets.format import ConvertedDataset
from possam.datasets.validate import validate_dataset
from possam.runtime.errors import InputError
from tests.support.layouts import (
    context_labels,
    convert_pascal_context,
    make_pascal_context,
    save_mat,
    save_photo,
)
from tests.support.parity_report import Parity

MAT, JPEG = "trainval/2008_000001.mat", "VOC2010/JPEGImages/2008_000001.jpg"
LIST = "VOC2010/ImageSets/Main/val.txt"


def test_miniature_is_converted_as_computed_by_hand(tmp_path: Path) -> None:
    arguments = make_pascal_context(tmp_path)
    manifest = convert_pascal_context(**arguments)
    dataset = ConvertedDataset.open(arguments["out"])
    assert (dataset.name, dataset.split) == ("pascal_context_459", "val")
    assert [record.id for record in dataset.images] == [2008000001, 2008000002]
    assert [(c.names[0], c.upstream_id, c.is_thing) for c in dataset.categories] == [
        ("wall", 1, False), ("sky", 2, False), ("lamp", 3, False),
    ]  # fmt: skip
    assert np.array_equal(dataset.semantic(0), context_labels().astype(int) - 1)
    assert np.array_equal(dataset.panoptic(1), context_labels())
    found = {s.id: (s.category, s.area, s.bbox) for s in dataset.images[0].segments}
    assert found == {1: (0, 7, (0, 1, 5, 2)), 2: (1, 4, (0, 0, 4, 1)), 3: (2, 3, (1, 1, 2, 2))}
    assert manifest["counts"] == {
        "images": 2, "segments": 6, "things": 0, "stuff": 6, "crowd": 0, "instances": 0,
    }  # fmt: skip
    assert manifest["histogram"]["void_pixels"] == 2
    assert manifest["instances"].startswith("none (semantic only")
    assert dataset.image_root.resolve() == (tmp_path / "VOC2010/JPEGImages").resolve()
    validate_dataset(arguments["out"])


def test_the_list_decides_which_images_are_of_a_split(tmp_path: Path) -> None:
    arguments = make_pascal_context(tmp_path) | {"split": "train"}
    convert_pascal_context(**arguments)
    assert [r.id for r in ConvertedDataset.open(arguments["out"]).images] == [2008000003]


@pytest.mark.parity("pascal_context")
def test_label_maps_of_459_classes_keep_every_pixel(
    shared: Path, tmp_path: Path, parity: Parity
) -> None:
    """Every class occurs; sizes differ; some files are compressed, some are not."""
    arguments = make_pascal_context(tmp_path, count=4)
    names = shared / "upstream/openseg_labels/pascal_context_459_with_prompt_eng.txt"
    rng = np.random.default_rng(0)
    for number, stem in enumerate((tmp_path / LIST).read_text().split()):
        height, width = 40 + number, 60 - number
        labels = rng.integers(0, 460, (height, width)).astype(np.uint16)
        labels.flat[:460] = np.arange(460)
        path = tmp_path / "trainval" / f"{stem}.mat"
        savemat(path, {"LabelMap": labels, "other": [1.0]}, do_compression=number % 2 == 1)
        save_photo(tmp_path / f"VOC2010/JPEGImages/{stem}.jpg", height, width)
    convert_pascal_context(**arguments | {"class_names": names})
    dataset = ConvertedDataset.open(arguments["out"])
    assert len(dataset.categories) == 459
    for position, record in enumerate(dataset.images):
        upstream = loadmat(tmp_path / "trainval" / f"{record.file.stem}.mat")["LabelMap"]
        parity.equal(dataset.semantic(position) + 1, upstream.astype(int))
        counted = np.bincount(upstream.ravel(), minlength=460)
        parity.equal({s.category + 1: s.area for s in record.segments},
                     {label: int(counted[label]) for label in range(1, 460)})  # fmt: skip
        with Image.open(record.semantic) as image:
            stored = np.asarray(image)
        # The common preparation's coding: label - 1, and 65535 for void.
        parity.equal(stored, np.where(upstream == 0, 65535, upstream.astype(int) - 1))
    assert validate_dataset(arguments["out"])["absent_classes"] == []


def _cut(path: str, keep: float) -> Callable[[Path], object]:
    def damage(root: Path) -> None:
        content = (root / path).read_bytes()
        (root / path).write_bytes(content[: int(len(content) * keep)])

    return damage


def _label(value: int) -> np.ndarray:
    labels = context_labels().astype(np.int32)
    labels[0, 0] = value
    return labels


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated mat": (_cut(MAT, 0.9), r"2008_000001\.mat: not a readable MATLAB file"),
    "half a mat": (_cut(MAT, 0.5), r"2008_000001\.mat: not a readable MATLAB file"),
    "empty mat": (_cut(MAT, 0.0), r"2008_000001\.mat: not a readable MATLAB file"),
    "no mat": (lambda r: (r / MAT).unlink(), "no such file"),
    "text for a mat": (
        lambda r: (r / MAT).write_text("no matrix " * 50),
        r"2008_000001\.mat: not a readable MATLAB file",
    ),
    "no LabelMap": (
        lambda r: save_mat(r / MAT, context_labels(), name="map"),
        "there is no LabelMap in it",
    ),
    "LabelMap of fractions": (
        lambda r: save_mat(r / MAT, context_labels() / 2),
        "no matrix of whole numbers",
    ),
    "LabelMap in colour": (
        lambda r: save_mat(r / MAT, np.zeros((3, 5, 3), np.uint16)),
        r"size \(3, 5, 3\), not of an image's",
    ),
    "wrong size": (lambda r: save_mat(r / MAT, context_labels()[:2]), "5x2 pixels.*5x3"),
    "label out of range": (lambda r: save_mat(r / MAT, _label(4)), r"labels are 0\.\.4; .*1\.\.3"),
    "negative label": (lambda r: save_mat(r / MAT, _label(-1)), r"labels are -1\.\.3"),
    "truncated image": (_cut(JPEG, 0.6), "truncated"),
    "no image": (lambda r: (r / JPEG).unlink(), "missing"),
    "no list": (lambda r: (r / LIST).unlink(), "VOCdevkit/VOC2010"),
    "empty list": (lambda r: (r / LIST).write_text(""), "no image to convert"),
    "image twice": (
        lambda r: (r / LIST).write_text("2008_000001\n2008_000001\n"),
        "line 2: 2008_000001 comes twice",
    ),
    "no image name": (lambda r: (r / LIST).write_text("../2008_000001\n"), "no image name"),
    "names with gap": (lambda r: (r / "names.txt").write_text("1:wall\n3:sky\n"), "without gaps"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, case: str) -> None:
    arguments = make_pascal_context(tmp_path)
    damage, fault = BAD[case]
    damage(tmp_path)
    with pytest.raises(InputError, match=fault) as error:
        convert_pascal_context(**arguments)
    assert str(tmp_path) in str(error.value)
    assert not arguments["out"].exists()


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    arguments = make_pascal_context(tmp_path, count=12)
    one = convert_pascal_context(**arguments)
    two = convert_pascal_context(**arguments | {"workers": 2, "out": tmp_path / "two"})
    assert one["content"] == two["content"]
