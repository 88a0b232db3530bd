"""Scoring prediction folders: the ground truth is perfect, and every fault in them is named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam.datasets.format import ConvertedDataset
from possam.errors import InputError, PossamError
from possam.evaluation.panoptic import PanopticResult
from possam.evaluation.predictions import (
    PredictionReader,
    PredictionWriter,
    check_panopticapi,
    from_rgb,
    to_rgb,
)
from possam.evaluation.score import score
from possam.evaluation.statistics import ImageStatistics
from possam.files import read_json
from possam.params import EvaluationParams

IDENTITY = {"run": "other", "benchmark": "toy", "condition": "trained"}


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationParams, tmp_path: Path) -> Callable:
    """``run(predictions, **options)`` scores against the toy data set."""

    def call(predictions: Path, **options: Any) -> dict[str, Any]:
        return score(
            dataset=dataset,
            predictions=predictions,
            evaluation=settings_small,
            out=tmp_path / "out",
            identity=IDENTITY,
            **options,
        )

    return call


@pytest.fixture
def written(dataset: ConvertedDataset, tmp_path: Path) -> Path:
    """The ground truth (crowd regions left void) written as predictions."""
    writer = PredictionWriter(tmp_path / "predictions", dataset)
    for position, record in enumerate(dataset.images):
        ids = dataset.panoptic(position)
        for segment in record.segments:
            if segment.is_crowd:
                ids[ids == segment.id] = 0
        segments = {s.id: s.category for s in record.segments if not s.is_crowd}
        writer.add(record, ids, segments)
    writer.close()
    return writer.json


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_ids_survive_colours() -> None:
    ids = np.array([[0, 1, 255, 256], [65_535, 65_536, 70_001, (1 << 24) - 1]])
    assert np.array_equal(from_rgb(to_rgb(ids)), ids)


def test_ground_truth_against_itself_is_perfect(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    assert any(s.is_crowd for record in dataset.images for s in record.segments)
    result = run(
        dataset.directory / "annotations.json", segmentations=dataset.directory / "panoptic"
    )
    metrics = result["metrics"]
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "pq_seen", "pq_class_agnostic"):
        assert metrics[name] == 100.0, name
    assert metrics["miou"] == metrics["miou_union"] == 100.0
    assert metrics["pq_unseen"] is None and result["intervals"]["pq_unseen"] is None
    assert result["intervals"]["pq"] == [100.0, 100.0]
    assert result["check"]["panopticapi_pq"] == 100.0
    assert result["run"] == "other" and result["counts"]["images"] == 6
    assert read_json(tmp_path / "out" / "evaluation.json") == result


def test_written_predictions_are_perfect_and_statistics_can_be_read_again(
    run: Callable, written: Path, tmp_path: Path
) -> None:
    seen = [True, True, False, False, True]
    result = run(written, seen=seen)
    assert result["metrics"]["pq"] == 100.0 and result["metrics"]["pq_unseen"] == 100.0
    assert result["metrics"]["miou"] < 100.0, "pixels of crowd regions were left void"
    things = [row["thing"] for row in result["per_class"]]
    loaded = ImageStatistics.load(tmp_path / "out", is_thing=things, seen=seen)
    for name, values in loaded.metrics().items():
        assert values[0] == pytest.approx(result["metrics"][name], abs=1e-10)


def test_upstream_category_ids(run: Callable, dataset: ConvertedDataset, written: Path) -> None:
    upstream = {c.index: c.upstream_id for c in dataset.categories}

    def rename(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["id"] = upstream[category["id"]]
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = upstream[segment["category_id"]]

    edit(written, rename)
    with pytest.raises(InputError, match=r"categories\[0\]: id: 17 .*category_ids='upstream'"):
        run(written)
    result = run(written, category_ids="upstream")
    assert result["metrics"]["pq"] == 100.0 and result["check"] is None


def test_names_guard_against_ids_of_another_list(run: Callable, written: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        content["categories"][0]["name"], content["categories"][2]["name"] = "dog", "cat"

    edit(written, swap)
    with pytest.raises(InputError, match=r"categories\[0\]: name: 'dog', but class 0 of toy is"):
        run(written)


def test_synonyms_and_case_are_the_same_name(run: Callable, written: Path) -> None:
    edit(written, lambda content: content["categories"][0].update(name=" Kitten "))
    assert run(written)["metrics"]["pq"] == 100.0


def remove(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.pop(key)


def first_segments(content: dict[str, Any]) -> list[dict[str, Any]]:
    return content["annotations"][0]["segments_info"]


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no annotations": (remove("annotations"), "predictions.json: annotations: missing"),
    "no categories": (remove("categories"), "predictions.json: categories: missing"),
    "no image id": (
        lambda c: c["annotations"][1].pop("image_id"),
        r"annotations\[1\]: image_id: missing",
    ),
    "unknown category": (
        lambda c: first_segments(c)[0].update(category_id=77),
        r"image_id 50: segments_info\[0\]: category_id: 77 is unknown",
    ),
    "category as text": (
        lambda c: first_segments(c)[0].update(category_id="1"),
        r"segments_info\[0\]: category_id: missing or not a whole number",
    ),
    "duplicate id": (
        lambda c: first_segments(c)[1].update(id=first_segments(c)[0]["id"]),
        r"segments_info\[1\]: id: 70001 occurs twice",
    ),
    "id missing in JSON": (
        lambda c: first_segments(c).pop(0),
        r"picture_0.png: ids in the PNG and in predictions.json differ: only in the PNG \[70001\]",
    ),
    "id missing in PNG": (
        lambda c: first_segments(c).append({"id": 9, "category_id": 0}),
        r"only in segments_info \[9\]",
    ),
    "image missing": (
        lambda c: c["annotations"].pop(2),
        r"1 of 6 images have no prediction \(image_id 48",
    ),
    "image twice": (
        lambda c: c["annotations"].append(c["annotations"][0]),
        r"annotations\[6\]: image_id: 50 occurs twice",
    ),
    "image of another split": (
        lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 7}),
        "image_id 7 and 0 others are not in toy val",
    ),
    "wrong file": (
        lambda c: c["annotations"][0].update(file_name="nothing.png"),
        "nothing.png: no such file",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_panoptic_predictions_are_named(
    run: Callable, written: Path, tmp_path: Path, fault: str
) -> None:
    change, message = FAULTS[fault]
    edit(written, change)
    with pytest.raises(InputError, match=message):
        run(written)
    assert not (tmp_path / "out" / "evaluation.json").exists()


def test_faults_in_files_are_named(run: Callable, written: Path, tmp_path: Path) -> None:
    png = written.with_suffix("") / "picture_0.png"
    Image.fromarray(np.zeros((5, 6, 3), np.uint8)).save(png)
    with pytest.raises(InputError, match=r"picture_0.png: size: 6 x 5, but image 50 is 30 x 24"):
        run(written)
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(png)
    with pytest.raises(InputError, match=r"picture_0.png: an 8-bit RGB PNG"):
        run(written)
    png.write_bytes(b"\x89PNG, but no more")
    with pytest.raises(InputError, match=r"picture_0.png: not a readable image"):
        run(written)
    written.write_text("{")
    with pytest.raises(InputError, match=r"predictions.json: not valid JSON"):
        run(written)
    with pytest.raises(InputError, match="no such folder"):
        run(written, segmentations=tmp_path / "elsewhere")


@pytest.fixture
def labels(dataset: ConvertedDataset, tmp_path: Path) -> Path:
    """The semantic ground truth as a folder of label PNGs."""
    return Path(shutil.copytree(dataset.directory / "semantic", tmp_path / "labels"))


def test_label_maps(run: Callable, labels: Path) -> None:
    result = run(labels)
    assert result["metrics"] == {"miou": 100.0, "miou_union": 100.0}
    assert result["check"] is None and "pq" not in result["per_class"][0]
    path = labels / "picture_2.png"
    wide = np.asarray(Image.open(path)).astype(np.uint16)
    wide[wide == 255] = 65_535
    Image.fromarray(wide).save(path)
    assert run(labels)["metrics"]["miou"] == 100.0
    Image.fromarray(np.full((20, 20), 255, np.uint8)).save(path)
    assert run(labels)["metrics"]["miou"] < 100.0


def test_label_maps_with_the_publishers_ids(
    run: Callable, dataset: ConvertedDataset, labels: Path
) -> None:
    upstream = np.zeros(256, np.uint8)  # 0: none
    for category in dataset.categories:
        upstream[category.index] = category.upstream_id
    for path in labels.iterdir():
        Image.fromarray(upstream[np.asarray(Image.open(path))]).save(path)
    assert run(labels, category_ids="upstream")["metrics"]["miou"] == 100.0
    Image.fromarray(np.full((24, 30), 254, np.uint8)).save(labels / "picture_1.png")
    with pytest.raises(InputError, match=r"picture_1.png: labels \[254\]: .* upstream ids"):
        run(labels, category_ids="upstream")


def test_faults_in_label_maps_are_named(run: Callable, labels: Path, tmp_path: Path) -> None:
    path = labels / "picture_1.png"
    for pixels, message in (
        (np.zeros((24, 31), np.uint8), "picture_1.png: size: 31 x 24, but image 49 is 30 x 24"),
        (np.full((24, 30), 5, np.uint8), r"labels \[5\]: valid are .* 0\.\.4 .* 255"),
        (np.zeros((24, 30, 3), np.uint8), "picture_1.png: a single-channel PNG"),
    ):
        Image.fromarray(pixels).save(path)
        with pytest.raises(InputError, match=message):
            run(labels)
    path.unlink()
    with pytest.raises(InputError, match=r"picture_1.png: no such file"):
        run(labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no PNG in this folder"):
        run(tmp_path / "empty")
    with pytest.raises(InputError, match="name the JSON file"):
        run(labels, segmentations=labels)


def test_disagreement_with_panopticapi_names_both_numbers(
    dataset: ConvertedDataset, written: Path
) -> None:
    reader = PredictionReader(written, dataset, folder=None, category_ids="contiguous")
    wrong = PanopticResult(pq=0.25, sq=1.0, rq=1.0, classes=5, per_class={})
    with pytest.raises(PossamError, match=r"PQ 25\.0 differs from panopticapi's 100\.0"):
        check_panopticapi(dataset, json=written, folder=reader.folder, result=wrong)


def test_flags_of_seen_classes_must_fit(run: Callable, written: Path) -> None:
    with pytest.raises(InputError, match="5 classes, but 2 flags"):
        run(written, seen=[True, False])


def test_without_a_folder_nothing_is_written(
    dataset: ConvertedDataset, settings_small: EvaluationParams, written: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = score(dataset=dataset, predictions=written, evaluation=settings_small)
    assert result["metrics"]["pq"] == 100.0
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="category_ids: unknown 'coco'; valid choices"):
        score(dataset=dataset, predictions=written, evaluation=settings_small, category_ids="coco")
