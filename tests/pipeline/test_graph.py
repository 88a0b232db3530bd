"""What the rules are told: a run's inputs and identity hold its own towers and no others."""

import shutil
from pathlib import Path

import pytest
import yaml

from possam.pipeline.graph import Pipeline
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = {"possam_b_coco": "sam_b", "two_way_9_b_coco": "sam_b", "fcclip_coco": None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))


@pytest.mark.parametrize("run", RUNS)
def test_inputs_hold_the_run_s_towers_and_no_others(folder: Path, run: str) -> None:
    plan, sam = Pipeline(folder=folder), RUNS[run]
    training = plan.training_inputs("mini/", run)
    evaluation = plan.evaluation_inputs("mini/", run, "0", "ade20k", "trained")
    for inputs in (training, evaluation):
        found = {path for path in inputs if "synthetic_sam" in path}
        assert found == ({f"data/mini/assets/synthetic_{sam}.record.json"} if sam else set())
        assert "data/mini/assets/synthetic_clip.record.json" in inputs
    features = {path.split("/")[3] for path in training if path.startswith("data/mini/features")}
    assert features == ({"b", "clip"} if sam else {"clip"})
    assert not any("/features/" in path for path in plan.training_inputs("", run))


def test_caches_of_clip_need_clip_alone(folder: Path) -> None:
    plan = Pipeline(folder=folder)
    inputs = plan.features_inputs("mini", "clip", "coco", "train")
    assert any("clip" in path for path in inputs) and not any("sam" in path for path in inputs)
    with pytest.raises(InputError, match=r"'xl'.*clip, b, l, h"):
        plan.features_inputs("mini", "xl", "coco", "train")


@pytest.mark.parametrize("run", RUNS)
def test_another_sam_changes_no_identity(folder: Path, run: str) -> None:
    def identities() -> list[str]:
        plan = Pipeline(folder=folder)
        evaluation = {"run": run, "seed": "0", "benchmark": "coco", "condition": "untrained"}
        return [
            plan.identity("train", "mini", run=run, seed="0"),
            plan.identity("evaluate", "mini", **evaluation),
        ]

    def swap(size: str) -> None:
        path = folder / "scales" / "mini.yaml"
        data = yaml.safe_load(path.read_text())
        data["towers"]["sam"][size]["architecture"] = "synthetic_x"
        path.write_text(yaml.safe_dump(data))

    before = identities()
    swap("l")
    assert identities() == before
    swap("b")
    changed = [one != other for one, other in zip(identities(), before, strict=True)]
    assert changed == [RUNS[run] is not None] * 2
