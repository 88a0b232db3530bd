"""Real COCO and ADE20K files, converted and scored: the publishers' own annotations are perfect."""

from pathlib import Path

import pytest

from possam.datasets.ade20k import convert_ade20k
from possam.datasets.coco import convert_coco
from possam.datasets.format import ConvertedDataset
from possam.evaluation.score import score
from possam.params import EvaluationParams

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


def test_the_published_coco_annotations_are_a_perfect_prediction(
    coco: ConvertedDataset, shared: Path, settings_small: EvaluationParams
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


def test_panopticapi_agrees_on_converted_coco(
    coco: ConvertedDataset, settings_small: EvaluationParams
) -> None:
    result = score(
        dataset=coco,
        predictions=coco.directory / "annotations.json",
        segmentations=coco.directory / "panoptic",
        evaluation=settings_small,
    )
    assert result["check"]["panopticapi_pq"] == result["metrics"]["pq"] == 100.0


def test_converted_ade20k_is_perfect_against_itself(
    shared: Path, settings_small: EvaluationParams, tmp_path: Path
) -> None:
    convert_ade20k(
        root=shared / "samples" / "ADEChallengeData2016",
        instances_root=None,
        class_names=shared / "upstream" / "openseg_labels" / "ade20k_150_with_prompt_eng.txt",
        instance_classes_csv=FACTS / "ade20k_instance_classes.csv",
        split="val",
        out=tmp_path / "ade",
        workers=1,
    )
    dataset = ConvertedDataset.open(tmp_path / "ade")
    panoptic = score(
        dataset=dataset,
        predictions=dataset.directory / "annotations.json",
        segmentations=dataset.directory / "panoptic",
        evaluation=settings_small,
    )
    assert panoptic["metrics"]["pq"] == panoptic["check"]["panopticapi_pq"] == 100.0
    labels = score(
        dataset=dataset, predictions=dataset.directory / "semantic", evaluation=settings_small
    )
    assert labels["metrics"] == {"miou": 100.0, "miou_union": 100.0}
