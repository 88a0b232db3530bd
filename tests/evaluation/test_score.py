"""Scoring predictions of any system, without a model: the ground truth is perfect."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from possam.datasets.format import ConvertedDataset
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.panoptic import PanopticResult
from possam.evaluation.predictions import check_panopticapi
from possam.evaluation.reader import PredictionReader
from possam.evaluation.score import score
from possam.evaluation.statistics import ImageStatistics
from possam.runtime.errors import InputError, PossamError
from possam.runtime.files import read_json

IDENTITY = {"run": "other", "benchmark": "toy", "condition": "trained"}


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path) -> Callable:
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


def test_upstream_category_ids(
    run: Callable, dataset: ConvertedDataset, written: Path, edit: Callable
) -> None:
    upstream = {c.index: c.upstream_id for c in dataset.categories}

    def rename(content: dict[str, Any]) -> None:
        for category in content["categories"]:
            category["id"] = upstream[category["id"]]
        for annotation in content["annotations"]:
            for segment in annotation["segments_info"]:
                segment["category_id"] = upstream[segment["category_id"]]

    edit(rename)
    with pytest.raises(InputError, match=r"categories\[0\]: id: 17 .*category_ids='upstream'"):
        run(written)
    result = run(written, category_ids="upstream")
    assert result["metrics"]["pq"] == 100.0 and result["check"] is None


def test_names_guard_against_ids_of_another_list(
    run: Callable, written: Path, edit: Callable
) -> None:
    def swap(content: dict[str, Any]) -> None:
        content["categories"][0]["name"], content["categories"][2]["name"] = "dog", "cat"

    edit(swap)
    with pytest.raises(InputError, match=r"categories\[0\]: name: 'dog', but class 0 of toy is"):
        run(written)


def test_synonyms_and_case_are_the_same_name(run: Callable, written: Path, edit: Callable) -> None:
    edit(lambda content: content["categories"][0].update(name=" Kitten "))
    assert run(written)["metrics"]["pq"] == 100.0


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
    dataset: ConvertedDataset, settings_small: EvaluationOptions, written: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = score(dataset=dataset, predictions=written, evaluation=settings_small)
    assert result["metrics"]["pq"] == 100.0
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InputError, match="category_ids: unknown 'coco'; valid choices"):
        score(dataset=dataset, predictions=written, evaluation=settings_small, category_ids="coco")
