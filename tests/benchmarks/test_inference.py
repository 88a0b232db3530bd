"""The benchmark of inference: both sides find the same in one image."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import inference, training
from benchmarks.ceiling import count_flops, matmul_ceiling
from benchmarks.harness import measure
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pictures.load import random_segmenter
from possam.runtime.files import write_json
from tests.support.lazy import LazyModule

naive = LazyModule("benchmarks.naive")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The mini scale in a folder that has its CLIP's configuration and no weights."""
    project = Project("mini", folder=ROOT / "params")
    monkeypatch.chdir(tmp_path)
    layout = Layout(project)
    for asset in project.scale.towers.clip.files:
        file = project.assets[asset].file
        write_json(layout.asset_record(asset), {"file": file, "sha256": "0" * 64})
        shutil.copy(ROOT / "data" / "towers" / file, layout.assets / file)
    monkeypatch.setattr(inference, "_MATRIX", {"cpu": 64})
    yield project


def quiet(line: str) -> None:
    """Say nothing."""


def test_both_assemblies_find_the_same(project: Project) -> None:
    rate = (1.5, "a paper")
    found: list[dict[str, Any]] = []
    for precision in ("fp32", "bf16"):
        for case in inference.on_device(
            project, "b", device="cpu", precision=precision, side=128, published=rate
        ):
            found.append(measure(case, repeats=1, report=quiet))
    assert [case["name"] for case in found] == [
        "inference/possam_b_150_classes",
        "inference/possam_b_150_classes_cpu_bf16",
    ]
    assert found[0]["error"] < 1e-3
    assert found[1]["error"] < 1, "rounded to bfloat16, random classes lie too close"
    for case in found:
        assert case["published"] == [1.5, "a paper"]
        for side in (case["ours"], case["theirs"]):
            share = case["flops"] / side["median_s"] / case["ceiling_flops_per_s"]
            assert side["share_of_ceiling"] == pytest.approx(share)
    assert found[0]["flops"] == found[1]["flops"] > 1e6
    json.dumps(found)


def test_the_papers_rates_are_read_from_its_table() -> None:
    found = inference.published_rates(Project("paper", folder=ROOT / "params"))
    assert {size: rate for size, (rate, _) in found.items()} == {"b": 1.72, "l": 1.48, "h": 1.30}
    assert all("0.B.1" in where for _, where in found.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_steps_start_from_about_the_same_loss(project: Project, precision: Any) -> None:
    torch.manual_seed(0)  # transformers draws its points from the global generator
    run = project.run("possam_b_coco")
    run = run.model_copy(update={"loss": run.loss.model_copy(update={"points": 4096})})
    segmenter = random_segmenter(project, "b", precision=precision)
    for case in training.live_cases("b", segmenter, run, device="cpu", side=128, images=2):
        found = measure(case, repeats=1, report=quiet)
        assert found["name"] == "training/whole_step_b_cpu" and found["error"] < 0.05


def test_operations_are_counted_and_a_ceiling_is_found() -> None:
    left, right = torch.randn(3, 5), torch.randn(5, 7)
    assert count_flops(lambda: left @ right) == 2 * 3 * 5 * 7
    assert matmul_ceiling("cpu", torch.float32, side=32) > 0


def test_the_reference_s_weights_are_drawn_all(project: Project) -> None:
    segmenter = random_segmenter(project, "b", precision="fp32")
    first, second = (
        naive.NaivePosSAM(segmenter, project.scale.model, seed=1).theirs.state_dict()
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert 0.8 < first["pixel_level_module.decoder.level_embed"].std() < 1.2


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-3), ("bf16", 0.2)])
def test_the_naive_network_predicts_what_ours_does(
    project: Project, precision: Any, bound: float
) -> None:
    segmenter = random_segmenter(project, "b", precision=precision).eval()
    reference = naive.NaivePosSAM(segmenter, project.scale.model, seed=1).eval()
    image = 255 * torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = segmenter(image), reference(image)
    for name in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
        found, other = getattr(ours, name), getattr(theirs, name)
        # Over all masks: rounding moves pixels of a mask, and so what is pooled in a small one.
        assert (found - other).norm() / other.norm() < bound, name
    assert ours.padded_size == theirs.padded_size == (128, 128)
