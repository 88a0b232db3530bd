"""Real COCO and ADE20K files, converted and scored: perfect and perturbed predictions.

The publishers' own annotations are perfect predictions; perturbed ones are scored by panopticapi,
pycocotools and torchmetrics, too.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from possam.datasets.format import ConvertedDataset
from possam.evaluation.instance import InstanceEvaluator
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.panoptic import PanopticEvaluator
from possam.evaluation.predictions import PredictionWriter
from possam.evaluation.score import score
from possam.evaluation.semantic import SemanticEvaluator
from possam.runtime.files import read_json
from tests.support.coco_oracle import oracle
from tests.support.jaccard import in_double
from tests.support.layouts import convert_ade20k, convert_coco
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity
from tests.support.pictures import panopticapi, same_quality

torchmetrics = LazyModule("torchmetrics.classification")

FACTS = Path(__file__).resolve().parents[2] / "params" / "facts"


@pytest.fixture(scope="module")
def coco(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertedDataset:
    source, out = shared / "samples" / "coco", tmp_path_factory.mktemp("coco") / "val"
    convert_coco(
        images=source / "val2017",
        panoptic_json=source / "annotations" / "panoptic_val2017.json",
        panoptic_png=source / "annotations" / "panoptic_val2017",
        instances_json=None,
        class_names=shared / "upstream" / "openseg_labels" / "coco_panoptic_with_prompt_eng.txt",
        split="val",
        out=out,
        workers=1,
    )
    return ConvertedDataset.open(out)


@pytest.fixture(scope="module")
def ade(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ConvertedDataset:
    out = tmp_path_factory.mktemp("ade") / "val"
    convert_ade20k(
        root=shared / "samples" / "ADEChallengeData2016",
        instances_root=None,
        class_names=shared / "upstream" / "openseg_labels" / "ade20k_150_with_prompt_eng.txt",
        instance_classes_csv=FACTS / "ade20k_instance_classes.csv",
        split="val",
        out=out,
        workers=1,
    )
    return ConvertedDataset.open(out)


@pytest.fixture(params=["coco", "ade"])
def sample(request: pytest.FixtureRequest) -> ConvertedDataset:
    """Each of the two converted samples."""
    dataset: ConvertedDataset = request.getfixturevalue(request.param)
    return dataset


def test_the_published_coco_annotations_are_a_perfect_prediction(
    coco: ConvertedDataset, shared: Path, settings_small: EvaluationOptions
) -> None:
    folder = shared / "samples" / "coco" / "annotations"
    result = score(
        dataset=coco,
        predictions=folder / "panoptic_val2017.json",
        category_ids="upstream",
        evaluation=settings_small,
    )
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "pq_class_agnostic", "miou"):
        assert result["metrics"][name] == 100.0, name
    assert result["counts"]["classes"] == 133


def test_converted_samples_are_perfect_against_themselves(
    sample: ConvertedDataset, settings_small: EvaluationOptions
) -> None:
    panoptic = score(
        dataset=sample,
        predictions=sample.directory / "annotations.json",
        segmentations=sample.directory / "panoptic",
        evaluation=settings_small,
    )
    assert panoptic["metrics"]["pq"] == panoptic["check"]["panopticapi_pq"] == 100.0
    labels = score(
        dataset=sample, predictions=sample.directory / "semantic", evaluation=settings_small
    )
    assert labels["metrics"] == {"miou": 100.0, "miou_union": 100.0}


# --- perturbed predictions

Prediction = tuple[np.ndarray, dict[int, int]]
Perturbation = Callable[[np.ndarray, dict[int, int], np.random.Generator, int], Prediction]


def shifted(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """Everything lies some pixels to the side."""
    return np.roll(ids, tuple(rng.integers(-12, 13, 2)), (0, 1)), segments


def one_segment_a_class(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """Segments of one class are merged into the first."""
    first: dict[int, int] = {}
    for key, category in segments.items():
        ids = np.where(ids == key, first.setdefault(category, key), ids)
    return ids, {key: category for category, key in first.items()}


def neighbours_merged(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """Every other segment takes in the next one, whatever its class."""
    keys = list(segments)
    for kept, lost in zip(keys[::2], keys[1::2], strict=False):
        ids = np.where(ids == lost, kept, ids)
    return ids, {key: segments[key] for key in keys[::2]}


def wrong_names(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """A third of the segments has the name of another one, or of any class."""
    names = [*segments.values(), *rng.integers(0, classes, 3).tolist()]
    changed = {k: int(rng.choice(names)) if rng.random() < 0.35 else c for k, c in segments.items()}
    return ids, changed


def coarse(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """Every 9th pixel stands for its block; small segments vanish."""
    blocks = np.repeat(np.repeat(ids[::9, ::9], 9, 0), 9, 1)[: ids.shape[0], : ids.shape[1]]
    return blocks, segments


def half_empty(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    """Half of the segments, and a quarter of the remaining pixels, are void."""
    lost = [key for key in segments if rng.random() < 0.5]
    return np.where(np.isin(ids, lost) | (rng.random(ids.shape) < 0.25), 0, ids), segments


def all_at_once(ids: np.ndarray, segments: dict[int, int], rng, classes: int) -> Prediction:
    for perturbation in (shifted, coarse, wrong_names, half_empty):
        ids, segments = perturbation(ids, segments, rng, classes)
    return ids, segments


PERTURBATIONS: list[Perturbation] = [
    shifted,
    one_segment_a_class,
    neighbours_merged,
    wrong_names,
    coarse,
    half_empty,
    all_at_once,
]


def perturbed(dataset: ConvertedDataset, perturbation: Perturbation) -> list[Prediction]:
    """The ground truth of each image, perturbed; segments without a pixel are not listed."""
    rng = np.random.default_rng(7)
    predictions = []
    for position, record in enumerate(dataset.images):
        segments = {s.id: s.category for s in record.segments}
        ids, segments = perturbation(
            dataset.panoptic(position), segments, rng, len(dataset.categories)
        )
        drawn = set(np.unique(ids).tolist())
        predictions.append((ids, {k: c for k, c in segments.items() if k in drawn}))
    return predictions


@pytest.mark.parity("panoptic_quality")
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_perturbed_samples_score_as_with_panopticapi(
    parity: Parity,
    sample: ConvertedDataset,
    settings_small: EvaluationOptions,
    perturbation: Perturbation,
    tmp_path: Path,
) -> None:
    writer = PredictionWriter(tmp_path, sample)
    evaluator = PanopticEvaluator(sample.categories)
    for position, (ids, segments) in enumerate(perturbed(sample, perturbation)):
        record = sample.images[position]
        writer.add(record, ids, segments)
        truth = {s.id: (s.category, s.is_crowd) for s in record.segments}
        evaluator.update(record.id, ids, segments, sample.panoptic(position), truth)
    writer.close()
    categories, totals = panopticapi(
        read_json(sample.directory / "annotations.json"),
        read_json(writer.json),
        folders=(sample.directory / "panoptic", writer.folder),
    )
    same_quality(parity, evaluator, categories, totals)
    result = score(dataset=sample, predictions=writer.json, evaluation=settings_small)
    average, _ = totals.pq_average(categories, isthing=None)
    for name in ("pq", "sq", "rq"):
        parity.equal(result["metrics"][name], 100.0 * average[name])
    # Without instance maps, ADE20K has one segment a class already.
    unchanged = perturbation is one_segment_a_class and sample.name == "ade20k"
    assert (result["metrics"]["pq"] == 100.0) == unchanged


@pytest.mark.parity("miou")
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_perturbed_samples_have_the_miou_of_torchmetrics(
    parity: Parity, sample: ConvertedDataset, perturbation: Perturbation
) -> None:
    classes = len(sample.categories)
    evaluator = SemanticEvaluator(classes)
    # torchmetrics knows no prediction of no class: one class more takes these pixels.
    oracle_of = torchmetrics.MulticlassJaccardIndex(classes + 1, average="none", ignore_index=-1)
    both, either = np.zeros(classes), np.zeros(classes)
    present: set[int] = set()
    for position, (ids, segments) in enumerate(perturbed(sample, perturbation)):
        predicted = np.full(ids.shape, -1)
        for key, category in segments.items():
            predicted[ids == key] = category
        target = sample.semantic(position)
        evaluator.update(position, predicted, target)
        shown = torch.from_numpy(np.where(predicted < 0, classes, predicted))
        oracle_of.update(shown, torch.from_numpy(target.astype(np.int64)))
        for k in range(classes):
            of_class = (predicted == k) & (target >= 0), target == k
            both[k] += (of_class[0] & of_class[1]).sum()
            either[k] += (of_class[0] | of_class[1]).sum()
        present |= set(np.unique(target).tolist()) - {-1}
    result = evaluator.result()
    occurring, wanted = np.flatnonzero(either), sorted(present)
    parity.equal(result.per_class, {int(k): both[k] / either[k] for k in occurring})
    parity.equal(result.miou, float((both[wanted] / either[wanted]).mean()))
    parity.equal(result.miou_union, float((both[occurring] / either[occurring]).mean()))
    theirs = in_double(oracle_of)
    parity.equal(result.per_class, {int(k): theirs[k] for k in occurring})
    parity.equal(result.miou, theirs[wanted].mean())


@pytest.mark.parity("mask_ap")
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_perturbed_coco_objects_have_the_ap_of_pycocotools(
    parity: Parity, coco: ConvertedDataset, perturbation: Perturbation
) -> None:
    rng = np.random.default_rng(1)
    things = [c.index for c in coco.categories if c.is_thing]
    instances = coco.instances()
    image_ids = [record.id for record in coco.images]
    evaluator = InstanceEvaluator(instances, image_ids=image_ids, num_classes=len(coco.categories))
    detections = []
    for image_id, (ids, segments) in zip(image_ids, perturbed(coco, perturbation), strict=True):
        found = [(key, category) for key, category in segments.items() if category in things]
        masks = np.array([ids == key for key, _ in found], bool).reshape(-1, *ids.shape)
        labels = np.array([category for _, category in found], np.int64)
        scores = rng.random(len(found))
        evaluator.update(image_id, masks, labels, scores)
        detections.append({"masks": masks, "labels": labels, "scores": scores})
    matches = evaluator.finish()
    ones = np.ones((1, len(image_ids)))
    precision, average, per_class = oracle(instances, detections, list(range(len(image_ids))))
    kinds = [category["id"] for category in instances["categories"]]
    ours = matches.precision(ones)[0][:, :, kinds]
    parity.equal(np.where(np.isnan(ours), -1.0, ours), precision)
    parity.equal(float(matches.average_precision(ones)[0]), average)
    means = dict(zip(kinds, ours.mean(axis=(0, 1)).tolist(), strict=True))
    parity.equal({k: mean for k, mean in means.items() if not np.isnan(mean)}, per_class)
    assert per_class
