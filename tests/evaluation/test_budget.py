"""The error budget: what right masks, or right names, would bring."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from possam.datasets.format import ConvertedDataset
from possam.evaluation.budget import BudgetProbes, Truth, oracle_scores, overlaps
from possam.evaluation.evaluate import evaluate_run
from possam.evaluation.options import EvaluationOptions
from possam.model.inference import MaskScores
from possam.model.ops.nearest import nearest_regions
from possam.model.ops.strips import Geometry
from possam.model.segmenter import Segmenter
from tests.support.answers import SEEN, Oracle, inference, text
from tests.support.model_fakes import FakeClip, FakeSam, small_possam

IDENTITY = {"run": "oracle", "seed": 0, "benchmark": "toy", "condition": "trained", "identity": "a"}
LEFT, RIGHT, NONE = 0, 1, 2
SQUARE = Geometry(padded=(4, 4), content=(4, 4), output=(4, 4))


def truth() -> Truth:
    """4 x 4: class 3 in the left two columns, class 1 in the third, none in the fourth."""
    places = np.zeros((4, 4), np.int64)
    places[:, :2], places[:, 2] = 1, 2
    return Truth(places, np.array([3, 1]), np.array([False, False]))


def masks() -> torch.Tensor:
    """The upper half of the left segment and a pixel; the third column; the fourth column."""
    logits = torch.full((3, 4, 4), -9.0)
    logits[LEFT, :2, :2] = 9.0
    logits[LEFT, 0, 2] = 9.0
    logits[RIGHT, :, 2] = 9.0
    logits[NONE, :, 3] = 9.0
    return logits


def test_overlaps_are_ious() -> None:
    # 4 of 8 + 5 - 4 = 9 pixels; 1 of 4 + 5 - 1 = 8.
    expected = [[4 / 9, 1 / 8], [0.0, 1.0], [0.0, 0.0]]
    torch.testing.assert_close(overlaps(masks(), truth(), SQUARE), torch.tensor(expected))


def test_the_oracle_names_by_the_best_overlap_and_keeps_the_rest() -> None:
    void, iou = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.9, 0.8, 0.7]])
    model = MaskScores(torch.full((1, 3, 5), 0.2), void, iou)
    own = oracle_scores(masks(), model, truth(), image=0, geometry=SQUARE)
    assert own.labels[0, :2].tolist() == [3, 1]
    torch.testing.assert_close(own.class_probs.sum(-1), torch.tensor([[1.0, 1.0, 0.0]]))
    torch.testing.assert_close(own.void, torch.tensor([[0.1, 0.2, 1.0]]))
    torch.testing.assert_close(own.iou, iou)


def test_an_image_without_a_segment_has_only_void() -> None:
    empty = Truth(np.zeros((4, 4), np.int64), np.zeros(0, np.int64), np.zeros(0, np.bool_))
    model = MaskScores(torch.full((1, 3, 5), 0.2), torch.zeros(1, 3), torch.ones(1, 3))
    own = oracle_scores(masks(), model, empty, image=0, geometry=SQUARE)
    assert (own.void == 1).all() and own.class_probs.sum() == 0
    assert empty.masks(SQUARE, count=1).max() < 0


def test_masks_of_the_truth_lie_on_the_padded_image() -> None:
    """Twice as large, with two columns and one row of padding."""
    geometry = Geometry(padded=(9, 10), content=(8, 8), output=(4, 4))
    inside = truth().masks(geometry, count=3) > 0
    assert inside.shape == (3, 9, 10) and not inside[2].any()
    assert inside[0].nonzero()[:, 1].max() == 3 and inside[0].sum() == 32
    assert inside[1].sum() == 16 and inside[1][:8, 4:6].all()


def test_segments_of_a_data_set(dataset: ConvertedDataset) -> None:
    for position, record in enumerate(dataset.images):
        found = Truth.of(dataset, position, panoptic=True)
        ids = dataset.panoptic(position)
        for place, segment in enumerate(record.segments):
            np.testing.assert_array_equal(found.places == place + 1, ids == segment.id)
        assert found.classes.tolist() == [s.category for s in record.segments]
        regions = Truth.of(dataset, position, panoptic=False)
        painted = np.concatenate([[-1], regions.classes])[regions.places]
        np.testing.assert_array_equal(painted, dataset.semantic(position))


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path) -> Any:
    def call(
        segmenter: Oracle, names: list[int], budget: str | None = "default"
    ) -> dict[str, dict[str, float]]:
        result = evaluate_run(
            segmenter=segmenter,  # type: ignore[arg-type]
            dataset=dataset,
            text=text(names),
            seen=SEEN,
            variants={"default": inference(), "ldp_only": inference(ensemble="ldp")},
            evaluation=settings_small,
            metrics=("panoptic", "instance", "semantic"),
            out=tmp_path / f"{budget}",
            identity=IDENTITY,
            budget=budget,
        )
        return {name: found["metrics"] for name, found in result["variants"].items()}

    return call


RIGHT_NAMES, WRONG_NAMES = [0, 1, 2, 3, 4], [2, 3, 4, 1, 0]


def test_right_masks_with_wrong_names(run: Callable, dataset: ConvertedDataset) -> None:
    found = run(Oracle(dataset), WRONG_NAMES)
    assert found["default"]["pq"] == 0.0
    assert found["oracle_labels"]["pq"] == 100.0
    assert found["ground_truth_masks"]["pq"] == 0.0
    assert found["ground_truth_masks"]["miou"] == 0.0


def test_right_names_with_wrong_masks(run: Callable, dataset: ConvertedDataset) -> None:
    found = run(Oracle(dataset, shrink=True), RIGHT_NAMES)
    assert found["ground_truth_masks"]["pq"] == 100.0
    assert found["ground_truth_masks"]["miou"] == 100.0
    assert found["default"]["pq"] < 95.0
    assert found["oracle_labels"]["pq"] == pytest.approx(found["default"]["pq"])


def test_the_probes_change_nothing_else(
    run: Callable, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    with_probes = run(Oracle(dataset, noise=0.3), RIGHT_NAMES)
    without = run(Oracle(dataset, noise=0.3), RIGHT_NAMES, None)
    assert set(with_probes) - set(without) == {"ground_truth_masks", "oracle_labels"}
    assert {name: with_probes[name] for name in without} == without
    for name in ("ground_truth_masks", "oracle_labels"):
        assert (tmp_path / "default" / name / "per_image.parquet").is_file()


def test_towers_run_once(dataset: ConvertedDataset, run: Callable) -> None:
    segmenter = Oracle(dataset)
    run(segmenter, RIGHT_NAMES)
    assert segmenter.calls == [4, 2], "one pass per batch"


def test_the_nearest_query_of_a_mask() -> None:
    own = masks()[None]
    given = torch.stack([own[0, NONE], own[0, LEFT], torch.full((4, 4), -9.0)])[None]
    given = given.repeat_interleave(2, -1).repeat_interleave(2, -2)
    regions = torch.arange(3.0).view(1, 1, 3, 1)
    assert nearest_regions(regions, own, given).flatten().tolist() == [NONE, LEFT, 0]


@pytest.mark.parametrize("features", ["mask_features", "neck", "queries"])
@pytest.mark.parametrize("pooling", ["area", "resized_logits"])
def test_predicted_masks_that_are_given_keep_their_embeddings(features: str, pooling: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam, clip = FakeSam(), FakeClip()
        images = torch.rand(2, 3, 64, 64) * 255
    possam = small_possam(region_features=features, mask_pooling=pooling)
    segmenter = Segmenter(sam=sam, clip=clip, possam=possam, precision="fp32").eval()
    with torch.inference_mode():
        maps = segmenter.features(images)
        first = segmenter.predict_from_features(*maps, image_size=(64, 64))
        order = torch.tensor([3, 0, 5])
        given = first.mask_logits[:, order]
        again = segmenter.predict_from_features(*maps, image_size=(64, 64), masks=given)
    torch.testing.assert_close(again.clip_embeddings, first.clip_embeddings[:, order])
    if features != "queries":  # queries whose masks are equal are told apart by nothing
        torch.testing.assert_close(again.ldp_embeddings, first.ldp_embeddings[:, order])


def test_stuff_of_one_name_is_one_segment(dataset: ConvertedDataset) -> None:
    """All segments named as one stuff class: one segment per image, whose pixels are theirs."""
    probes = BudgetProbes(dataset, ("panoptic", "semantic"))
    sky = 1
    for position in range(len(dataset)):
        found = Truth.of(dataset, position, panoptic=True)
        probes.count_named(position, found, np.full(len(found.classes), sky))
    evaluator = probes.evaluators["ground_truth_masks"]
    assert evaluator.panoptic is not None and evaluator.semantic is not None
    counts = evaluator.panoptic.counts()
    assert (counts.tp[:, sky] + counts.fp[:, sky] <= 1).all()
    assert counts.tp[:, [0, 2, 3, 4]].sum() == 0
