"""Evaluations do not depend on the batch size, the order of the images, or strips of pixels."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.reader import PredictionReader
from possam.evaluation.statistics import ImageStatistics
from possam.model.ops.strips import STRIP_CELLS
from possam.model.segmenter import Segmenter
from tests.support.answers import SEEN, Oracle, inference, text
from tests.support.model_fakes import FakeClip, FakeSam, random_text, small_possam
from tests.support.parity_report import Parity
from tests.support.pictures import draw

IDENTITY = {"run": "batches", "seed": 0, "benchmark": "toy", "condition": "trained"}
ORDERS = {"as it is": [0, 1, 2, 3, 4, 5], "shuffled": [3, 0, 5, 2, 1, 4]}

# Batches of one, of some and of all images; strips of one row, of some, and of all.
WAYS = [
    (1, "shuffled", 1 << 22),
    (1, "as it is", 500),
    (3, "as it is", 1 << 22),
    (3, "shuffled", 1),
    (6, "as it is", 1),
    (6, "shuffled", 500),
]
over_all = pytest.mark.parametrize(("batch_size", "order", "cells"), WAYS)


def small_segmenter() -> Segmenter:
    """Random weights: predictions without a meaning, by the network's own code."""
    torch.manual_seed(0)
    return Segmenter(sam=FakeSam(), clip=FakeClip(), possam=small_possam(), precision="fp32")


def evaluate(
    segmenter: Any,
    dataset: ConvertedDataset,
    settings: EvaluationOptions,
    out: Path,
    *,
    order: str = "as it is",
    batch_size: int = 1,
    **changes: Any,
) -> tuple[dict[str, Any], ImageStatistics]:
    """Metrics, and statistics with the images in the data set's own order; maps in ``out``."""
    images = tuple(dataset.images[place] for place in ORDERS[order])
    options: dict[str, Any] = {
        "text": text([0, 1, 2, 3, 4]),
        "variants": {"default": inference(object_threshold=0.1)},
    }
    result = evaluate_run(
        segmenter=segmenter,
        dataset=dataclasses.replace(dataset, images=images),
        seen=SEEN,
        evaluation=settings.model_copy(update={"batch_size": batch_size}),
        metrics=("panoptic", "instance", "semantic"),
        out=out,
        identity=IDENTITY,
        predictions=out,
        **(options | changes),
    )
    things = [category.is_thing for category in dataset.categories]
    statistics = ImageStatistics.load(out / "default", is_thing=things, seen=SEEN)
    return result["variants"]["default"]["metrics"], statistics


def counts(statistics: ImageStatistics, dataset: ConvertedDataset) -> dict[str, np.ndarray]:
    """Every count of every image, in the order of the data set."""
    rows = [statistics.image_ids.index(record.id) for record in dataset.images]
    tables = {}
    for part in ("panoptic", "class_agnostic", "semantic"):
        for field in dataclasses.fields(getattr(statistics, part)):
            tables[f"{part} {field.name}"] = getattr(getattr(statistics, part), field.name)[rows]
    return tables


@pytest.mark.parity("batching")
@over_all
def test_metrics_and_counts_are_those_of_one_image_at_a_time(
    parity: Parity,
    dataset: ConvertedDataset,
    settings_small: EvaluationOptions,
    tmp_path: Path,
    batch_size: int,
    order: str,
    cells: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    oracle = Oracle(dataset, noise=0.7)
    single = evaluate(oracle, dataset, settings_small, tmp_path / "single")
    assert 5 < single[0]["pq"] < 95 and 5 < single[0]["map"] < 95 and 5 < single[0]["miou"] < 95
    monkeypatch.setitem(STRIP_CELLS, "cpu", cells)
    other = evaluate(
        oracle,
        dataset,
        settings_small,
        tmp_path / "other",
        order=order,
        batch_size=batch_size,
    )
    parity.equal(other[0], single[0])
    parity.equal(counts(other[1], dataset), counts(single[1], dataset))


@over_all
def test_maps_of_a_network_are_those_of_one_image_at_a_time(
    dataset: ConvertedDataset,
    settings_small: EvaluationOptions,
    tmp_path: Path,
    batch_size: int,
    order: str,
    cells: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Convolutions of a batch round in their own way: one pixel in a thousand may change."""
    maps = []
    for folder, options, strip in (
        ("single", {}, 1 << 22),
        ("other", {"order": order, "batch_size": batch_size}, cells),
    ):
        monkeypatch.setitem(STRIP_CELLS, "cpu", strip)
        evaluate(
            small_segmenter(),
            dataset,
            settings_small,
            tmp_path / folder,
            text=random_text(classes=5, seed=3),
            **options,
        )
        json = tmp_path / folder / "default" / "predictions.json"
        reader = PredictionReader(json, dataset, folder=None, category_ids="contiguous")
        names = []
        for record in dataset.images:
            found, segments = reader.read(record)
            names.append(
                np.vectorize(lambda key, of=segments: of.get(key, -1))(draw(found)).ravel()
            )
        maps.append(np.concatenate(names))
    assert len(np.unique(maps[0])) > 1, "some pixels are a class's, some are nobody's"
    assert (maps[0] != maps[1]).mean() <= 1e-3


@pytest.mark.parity("batching")
@pytest.mark.parametrize("batch_size", [3, 6])
def test_raw_predictions_are_those_of_one_image_at_a_time(parity: Parity, batch_size: int) -> None:
    model = small_segmenter().eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 21, 30), generator=generator).float()
    for start in range(0, 6, batch_size):
        together = model(images[start : start + batch_size])
        for row in range(batch_size):
            alone = model(images[start + row : start + row + 1])
            for name in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
                parity.close(getattr(together, name)[row], getattr(alone, name)[0], bound=1e-5)
