"""Test sets with only label maps (A-847, PC-459): scored from PNGs, and with a model."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor, nn

from possam.datasets.class_names import read_class_index, seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import score
from possam.evaluation.statistics import ImageStatistics
from possam.model.encoders.text import TextEmbeddings
from possam.model.segmenter import RawPrediction
from possam.runtime.errors import InputError
from tests.support.answers import inference
from tests.support.layouts import convert_ade20k_full, convert_pascal_context

FACTS = Path(__file__).resolve().parents[2] / "params" / "facts"
SIZE = (20, 24)
LABELS = (1, 255, 256, 459)
"""Of PC-459: on both sides of what 8 bits hold."""


def labels_of(shared: Path, name: str) -> Path:
    return shared / "upstream" / "openseg_labels" / f"{name}_with_prompt_eng.txt"


@pytest.fixture(scope="module")
def full(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertedDataset:
    """The real sample of ADE20K-full: 847 classes."""
    out = tmp_path_factory.mktemp("full") / "train"
    convert_ade20k_full(
        root=shared / "samples" / "ADE20K_2021_17_01",
        class_names=labels_of(shared, "ade20k_847"),
        classes_csv=FACTS / "ade20k_full_classes.csv",
        split="train",
        out=out,
        workers=1,
    )
    return ConvertedDataset.open(out)


@pytest.fixture(scope="module")
def context(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertedDataset:
    """Two images with quarters of four of the 459 classes, and a void corner."""
    root = tmp_path_factory.mktemp("context")
    voc = root / "VOC2010"
    for folder in ("JPEGImages", "ImageSets/Main", "trainval"):
        (voc / folder).mkdir(parents=True)
    labels = np.zeros(SIZE, np.uint16)
    for quarter, label in enumerate(LABELS):
        top, left = quarter // 2 * 10, quarter % 2 * 12
        labels[top : top + 10, left : left + 12] = label
    labels[:2, :2] = 0
    rng = np.random.default_rng(0)
    for stem in ("2008_000003", "2008_000007"):
        noise = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(noise).save(voc / f"JPEGImages/{stem}.jpg")
        savemat(voc / f"trainval/{stem}.mat", {"LabelMap": labels})
    (voc / "ImageSets/Main/val.txt").write_text("2008_000003\n2008_000007\n")
    convert_pascal_context(
        voc=voc,
        labels=voc / "trainval",
        class_names=labels_of(shared, "pascal_context_459"),
        split="val",
        out=root / "out",
        workers=1,
    )
    return ConvertedDataset.open(root / "out")


def rewrite(folder: Path, table: np.ndarray, dtype: type) -> None:
    for path in folder.iterdir():
        with Image.open(path) as image:
            stored = np.asarray(image).astype(int)
        Image.fromarray(table[stored].astype(dtype)).save(path)


def test_label_pngs_of_847_classes_are_scored(
    full: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(full.directory / "semantic", tmp_path / "labels"))
    settings: dict[str, Any] = {"dataset": full, "predictions": folder}
    settings["evaluation"] = settings_small
    assert score(**settings)["metrics"] == {"miou": 100.0, "miou_union": 100.0}
    # All trees (class 3) are named as class 259, whose lower byte is the same.
    table = np.arange(65536)
    table[3] = 259
    rewrite(folder, table, np.uint16)
    result = score(**settings)
    assert result["per_class"][3]["iou"] == 0.0 and result["per_class"][259]["iou"] == 0.0
    present = len(full.images[0].segments)
    assert result["metrics"]["miou"] == pytest.approx(100 * (present - 1) / present)
    assert result["metrics"]["miou_union"] == pytest.approx(100 * (present - 1) / (present + 1))


def test_label_pngs_with_ade_indices_are_scored(
    full: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(full.directory / "semantic", tmp_path / "labels"))
    table = np.zeros(65536, int)
    for category in full.categories:
        table[category.index] = category.upstream_id
    rewrite(folder, table, np.uint16)
    result = score(
        dataset=full, predictions=folder, evaluation=settings_small, category_ids="upstream"
    )
    assert result["metrics"]["miou"] == 100.0


def test_eight_bits_cannot_hold_the_labels(
    full: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(full.directory / "semantic", tmp_path / "labels"))
    rewrite(folder, np.minimum(np.arange(65536), 255), np.uint8)
    with pytest.raises(InputError, match=r"ADE_train_00016869\.png: 8 bits .* up to 846.*16 bits"):
        score(dataset=full, predictions=folder, evaluation=settings_small)


class Head(nn.Module):
    def class_logits(self, embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        classes = 20 * embeddings @ text.names.T
        void = 20 * (embeddings.norm(dim=-1, keepdim=True) < 0.5).float()
        return torch.cat([classes, void], -1)


class Clip:
    logit_scale = 20.0


class Oracle(nn.Module):
    """Draws the segments of the data set's images, which are all alike, and names them."""

    def __init__(self, dataset: ConvertedDataset, *, wrong: dict[int, int]) -> None:
        super().__init__()
        self.possam, self.clip = Head(), Clip()
        self.features = SimpleNamespace(padding=(0, 0, 0))
        self._ids = torch.from_numpy(dataset.panoptic(0))
        self._names = [
            (s.id, wrong.get(s.category, s.category)) for s in dataset.images[0].segments
        ]
        self._classes = len(dataset.categories)

    def forward(self, images: Tensor) -> RawPrediction:
        masks = torch.full((len(images), len(self._names), *SIZE), -15.0)
        embeddings = torch.zeros(len(images), len(self._names), self._classes)
        for query, (key, category) in enumerate(self._names):
            masks[:, query][:, self._ids == key] = 15.0
            embeddings[:, query, category] = 1.0
        iou = torch.ones(len(images), len(self._names))
        return RawPrediction(masks, embeddings, embeddings, iou, SIZE, SIZE)


@pytest.mark.parametrize("wrong", [{}, {458: 0}])
def test_a_model_is_evaluated_on_459_classes(
    context: ConvertedDataset,
    shared: Path,
    settings_small: EvaluationOptions,
    tmp_path: Path,
    wrong: dict[int, int],
) -> None:
    training = read_class_index(labels_of(shared, "coco_panoptic")).values()
    seen = seen_classes(context.vocabulary, list(training))
    result = evaluate_run(
        segmenter=Oracle(context, wrong=wrong),
        dataset=context,
        text=TextEmbeddings(torch.eye(459), torch.arange(459), 459),
        seen=seen,
        variants={"default": inference()},
        evaluation=settings_small,
        metrics=("semantic",),
        out=tmp_path / "out",
        identity={
            "run": "oracle", "seed": 0, "benchmark": "pascal_context_459", "condition": "trained",
        },
    )  # fmt: skip
    found = result["variants"]["default"]
    iou = {row["index"]: row["iou"] for row in found["per_class"] if row["iou"] is not None}
    # Wrongly named: a quarter of 120 pixels, beside the right one of 116.
    expected = {0: 100.0, 254: 100.0, 255: 100.0, 458: 100.0}
    if wrong:
        expected |= {0: pytest.approx(100 * 116 / 236), 458: 0.0}
    assert iou == expected
    assert found["metrics"]["miou"] == pytest.approx(sum(iou.values()) / 4)
    assert result["counts"] == {
        "images": 2, "classes": 459, "things": 0, "stuff": 459, "seen": 85, "unseen": 374,
    }  # fmt: skip
    assert [row["seen"] for row in found["per_class"]] == seen
    loaded = ImageStatistics.load(tmp_path / "out/default", is_thing=[False] * 459, seen=seen)
    assert loaded.metrics()["miou"][0] == pytest.approx(found["metrics"]["miou"])
