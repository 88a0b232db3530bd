"""A whole evaluation with a model that knows the answers, so that every metric is known too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from possam.datasets.format import ConvertedDataset
from possam.evaluation.evaluate import evaluate_run, size_batches
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import score
from possam.evaluation.statistics import ImageStatistics
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import ResolutionOptions
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from tests.support.answers import SEEN, Oracle, inference, text

ALL = ("panoptic", "instance", "semantic")
IDENTITY = {"run": "oracle", "seed": 0, "benchmark": "toy", "condition": "trained", "identity": "a"}


@pytest.fixture
def run(dataset: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path) -> Any:
    """``run(folder, **changes)``: one evaluation of the oracle into ``tmp_path / folder``.

    With ``inference`` instead of ``variants`` that is the default variant's.
    """

    def call(folder: str, **changes: Any) -> dict[str, Any]:
        options: dict[str, Any] = {
            "segmenter": Oracle(dataset),
            "dataset": dataset,
            "text": text([0, 1, 2, 3, 4]),
            "seen": SEEN,
            "variants": {"default": changes.pop("inference", inference())},
            "evaluation": settings_small,
            "metrics": ALL,
            "out": tmp_path / folder,
            "identity": IDENTITY,
        }
        return evaluate_run(**(options | changes))

    return call


def test_a_model_that_knows_the_answers_scores_100(run: Any, tmp_path: Path) -> None:
    result = run("out")
    found = result["variants"]["default"]
    metrics = found["metrics"]
    for name in ("pq", "sq", "rq", "pq_things", "pq_stuff", "pq_seen", "pq_unseen"):
        assert metrics[name] == 100.0, name
    assert metrics["pq_class_agnostic"] == 100.0
    assert metrics["map"] == pytest.approx(100.0)
    assert found["check"] == {f"panopticapi_{name}": 100.0 for name in ("pq", "sq", "rq")}
    assert result["counts"] == {
        "images": 6,
        "classes": 5,
        "things": 3,
        "stuff": 2,
        "seen": 3,
        "unseen": 2,
    }
    assert found["protocol"]["inference"]["alpha"] == 0.4
    assert [row["name"] for row in found["per_class"]] == ["cat", "sky", "dog", "grass", "bus"]
    assert all(row["pq"] == 100.0 for row in found["per_class"])
    assert all(("ap" in row) == row["thing"] for row in found["per_class"])
    assert {key: result[key] for key in IDENTITY} == IDENTITY
    assert read_json(tmp_path / "out" / "evaluation.json") == result


def test_wrong_names_leave_the_segments_and_lose_the_classes(run: Any) -> None:
    """The control with shuffled names: class-agnostic PQ stays, the rest falls."""
    # Things among things, stuff among stuff: things named as one stuff class would be merged.
    settings = inference(instance_top_k=3)
    result = run("out", text=text([2, 3, 4, 1, 0]), inference=settings)
    metrics = result["variants"]["default"]["metrics"]
    assert metrics["pq_class_agnostic"] == 100.0
    assert metrics["pq"] == metrics["rq"] == metrics["pq_unseen"] == 0.0
    assert metrics["map"] == 0.0 and metrics["miou"] < 5.0


def test_batches_change_nothing_and_results_repeat_to_the_byte(
    run: Any, dataset: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path
) -> None:
    single = settings_small.model_copy(update={"batch_size": 1})
    oracle = Oracle(dataset)
    run("first", segmenter=oracle)
    run("second")
    run("single", evaluation=single)
    assert oracle.calls == [4, 2], "four images of one size, two of another"
    statistics = ("default/instance_matches.parquet", "default/per_image.parquet")
    files = (*statistics, "evaluation.json")
    for name in files:
        content = (tmp_path / "first" / name).read_bytes()
        assert content == (tmp_path / "second" / name).read_bytes()
        assert content == (tmp_path / "single" / name).read_bytes()
    written = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "first")) for path in written} == set(files)


VARIANTS = {
    "default": inference(),
    "ldp_only": inference(ensemble="ldp"),
    "clip_only": inference(ensemble="clip"),
    "geometric_no_iou": inference(iou_weighting=False, alpha=0.6, instance_top_k=4),
    "strict": inference(ensemble="mase", object_threshold=0.9, overlap_threshold=0.9),
}


def test_all_variants_come_from_one_forward_pass_and_equal_evaluations_of_their_own(
    run: Any, dataset: ConvertedDataset, tmp_path: Path
) -> None:
    oracle = Oracle(dataset, disagree=True)
    together = run("together", segmenter=oracle, variants=VARIANTS)
    assert oracle.calls == [4, 2], "each image once, whatever the number of variants"
    assert list(together["variants"]) == list(VARIANTS)
    for name, settings in VARIANTS.items():
        single = Oracle(dataset, disagree=True)
        alone = run(name, segmenter=single, inference=settings)
        assert together["variants"][name] == alone["variants"]["default"], name
        for file in ("per_image.parquet", "instance_matches.parquet"):
            content = (tmp_path / "together" / name / file).read_bytes()
            assert content == (tmp_path / name / "default" / file).read_bytes()
    metrics = {name: found["metrics"] for name, found in together["variants"].items()}
    assert metrics["ldp_only"]["pq"] == 100.0 and metrics["clip_only"]["pq"] == 0.0
    assert metrics["geometric_no_iou"]["map"] != metrics["default"]["map"]
    checks = [found["check"]["panopticapi_pq"] for found in together["variants"].values()]
    assert checks == [found["pq"] for found in metrics.values()]


def test_variants_that_are_not_asked_for_any_more_are_removed(run: Any, tmp_path: Path) -> None:
    run("out", variants=VARIANTS)
    run("out", variants={name: VARIANTS[name] for name in ("default", "strict")})
    (tmp_path / "fresh").mkdir()
    run("fresh", variants={name: VARIANTS[name] for name in ("default", "strict")})
    files = [
        {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "out", tmp_path / "fresh")
    ]
    assert files[0] == files[1]


def test_statistics_on_disk_give_the_metrics_again(run: Any, tmp_path: Path) -> None:
    result = run("out", text=text([0, 1, 4, 3, 2]))["variants"]["default"]
    assert 0 < result["metrics"]["pq"] < 100
    things = [row["thing"] for row in result["per_class"]]
    loaded = ImageStatistics.load(tmp_path / "out" / "default", is_thing=things, seen=SEEN)
    for name, value in loaded.metrics().items():
        assert value[0] == pytest.approx(result["metrics"][name], abs=1e-9), name
        low, high = result["intervals"][name]
        assert 0 <= low <= high <= 100


def test_kept_predictions_score_the_same(
    run: Any, dataset: ConvertedDataset, settings_small: EvaluationOptions, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    result = run("out", text=text([0, 1, 4, 3, 2]), predictions=folder)["variants"]["default"]
    again = score(
        dataset=dataset,
        predictions=folder / "default" / "predictions.json",
        evaluation=settings_small,
        seen=SEEN,
    )
    for name, value in again["metrics"].items():
        if name.startswith(("pq", "sq", "rq")):
            assert value == result["metrics"][name]
    segments = read_json(folder / "default" / "predictions.json")["annotations"][0]["segments_info"]
    assert all(0 < segment["score"] <= 1 and segment["area"] > 0 for segment in segments)


def test_only_what_is_asked_for_is_measured(run: Any, tmp_path: Path) -> None:
    run("out")
    result = run("out", metrics=("semantic",))["variants"]["default"]
    assert set(result["metrics"]) == {"miou", "miou_union"}
    assert result["check"] is None
    assert not (tmp_path / "out" / "default" / "instance_matches.parquet").exists()


def test_nothing_predicted(run: Any) -> None:
    result = run("out", inference=inference(object_threshold=1.0))
    metrics = result["variants"]["default"]["metrics"]
    assert metrics["pq"] == metrics["pq_class_agnostic"] == 0.0


def test_a_failed_evaluation_leaves_no_result(run: Any, tmp_path: Path) -> None:
    run("out")
    broken = nn.Module()
    broken.features = SimpleNamespace(padding=(0, 0, 0))
    with pytest.raises(NotImplementedError):
        run("fresh", segmenter=broken)
    assert not (tmp_path / "fresh" / "evaluation.json").exists()


def test_a_vocabulary_of_another_data_set_is_refused(run: Any) -> None:
    with pytest.raises(InputError, match="5 classes, but 3 text embeddings"):
        run("out", text=TextEmbeddings(torch.eye(5)[:3], torch.arange(3), 3))
    with pytest.raises(InputError, match="5 classes, but 1 flags of seen classes"):
        run("out", seen=[True])
    with pytest.raises(ValueError, match="identity lacks"):
        run("out", identity={"run": "x"})
    other = ResolutionOptions(policy="native", size=64, max_size=64)
    with pytest.raises(ValueError, match="one test resolution"):
        run("out", variants={"default": inference(), "large": inference(resolution=other)})


def test_batches_hold_images_of_one_size_and_every_image_once(dataset: ConvertedDataset) -> None:
    batches = list(size_batches(dataset, 3))
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert [len(batch) for batch in batches] == [3, 1, 2]
    for batch in batches:
        assert len({(dataset.images[i].height, dataset.images[i].width) for i in batch}) == 1
