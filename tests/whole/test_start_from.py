"""A run whose decoders start from a Mask2Former checkpoint: declared, fetched, used, recorded."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from possam.params.project import Project
from possam.runtime.files import read_json, sha256_file
from possam.training.mask2former import convert_mask2former
from tests.support.lazy import LazyModule
from tests.whole.conftest import Workspace
from tests.whole.test_smoke import edited

transformers = LazyModule("transformers")

pytestmark = pytest.mark.pipeline

RATE = "training: {learning_rate: 1.0e-12}"
"""The weights stay where they start."""
RUNS = f"""
started: {{sam: b, train: coco, start_from: tiny_mask2former, {RATE}}}
alone: {{sam: b, train: coco, {RATE}}}
"""
NAMES = ("started", "alone")
ASSET = """
tiny_mask2former:
  file: tiny_mask2former.safetensors
  urls: ["file:tiny/model.safetensors"]
  checksum: null
  licence: "made by the tests"
"""


def write_checkpoint(workspace: Workspace, *, queries: int) -> Path:
    """A Mask2Former of the smoke scale's widths, saved as ``transformers`` saves it."""
    sizes = Project("smoke", folder=workspace.folder / "params").scale.model
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            image_size=32,
            embed_dim=8,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 1, 1],
            window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        feature_size=sizes.hidden_dim,
        mask_feature_size=sizes.hidden_dim,
        hidden_dim=sizes.hidden_dim,
        encoder_feedforward_dim=sizes.pixel_encoder_ffn,
        dim_feedforward=sizes.decoder_ffn,
        encoder_layers=sizes.pixel_encoder_layers,
        decoder_layers=sizes.decoder_layers + 1,
        num_attention_heads=sizes.heads,
        num_queries=queries,
    )
    torch.manual_seed(queries)
    model = transformers.Mask2FormerForUniversalSegmentation(config)
    model.save_pretrained(workspace.folder / "tiny")
    return workspace.folder / "tiny/model.safetensors"


@contextmanager
def declared(workspace: Workspace) -> Iterator[None]:
    """Both runs and the asset are known inside; afterwards everything is as it was."""
    params = workspace.folder / "params"
    runs, assets = (params / "runs.yaml").read_text(), (params / "assets.yaml").read_text()
    with edited(params / "assets.yaml", assets, assets + ASSET):
        with edited(params / "runs.yaml", runs, runs + RUNS):
            yield
    for name in NAMES:
        shutil.rmtree(workspace.folder / "results/smoke/runs" / name)


def test_a_run_starts_from_a_checkpoint(finished: Workspace) -> None:
    checkpoint = write_checkpoint(finished, queries=30)
    results = finished.folder / "results/smoke/runs"
    with declared(finished):
        output = finished.snakemake(*(f"results/smoke/runs/{n}/seed0/run.json" for n in NAMES))
        record = read_json(finished.folder / "data/smoke/assets/tiny_mask2former.record.json")
        assert record["sha256"] == sha256_file(checkpoint)
        assert output.count("tensors of Mask2Former's decoders taken over") == 1
        # the Swin's maps have 8, 16, 32 and 64 channels, the pyramid's 64
        for block in ("input_projections.1", "input_projections.2", "lateral"):
            assert f"pixel_decoder.{block}" in output
        again = finished.snakemake(*(f"results/smoke/runs/{n}/seed0/run.json" for n in NAMES))
        assert "Nothing to be done" in again

        started, alone = (load_file(results / n / "seed0/weights.safetensors") for n in NAMES)
        prefix = "decoder."
        decoder = {k.removeprefix(prefix): v for k, v in started.items() if k.startswith(prefix)}
        expected = convert_mask2former(load_file(checkpoint), target=decoder)
        assert len(expected.tensors) > 50
        for name, value in started.items():
            source = expected.tensors.get(name.removeprefix(prefix), alone[name])
            torch.testing.assert_close(value, source, rtol=0, atol=1e-6)
        name = "decoder.mask_decoder.query_features"
        assert (started[name] - alone[name]).abs().max() > 0.1

        run = read_json(results / "started/seed0/run.json")
        digest = sha256_file(checkpoint)
        assert run["inputs"]["start_from"] == digest
        assert run["parameters"]["start_from"] == "tiny_mask2former"
        assert (
            read_json(results / "started/seed0/provenance.json")["inputs"]["start_from"] == digest
        )
        other = read_json(results / "alone/seed0/run.json")
        assert "start_from" not in other["inputs"] and other["identity"] != run["identity"]
        steps = [
            json.loads(line)["step"] for line in (results / "started/seed0/metrics.jsonl").open()
        ]
        assert steps == [1, 2, 3, 4]


def test_a_run_starts_from_another_run(finished: Workspace) -> None:
    runs, folder = finished.folder / "params/runs.yaml", finished.folder / "results/smoke/runs"
    before = runs.read_text()
    own = f"\ngoes_on: {{sam: b, train: coco, start_from: possam_b_coco, {RATE}}}\n"
    with edited(runs, before, before + own):
        target = "results/smoke/runs/goes_on/seed0/run.json"
        output = finished.snakemake(target)
        assert "tensors taken over" in output
        assert "Nothing to be done" in finished.snakemake(target)
        found, expected = (
            load_file(folder / name / "seed0/weights.safetensors")
            for name in ("goes_on", "possam_b_coco")
        )
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6)
        digest = read_json(folder / "possam_b_coco/seed0/run.json")["weights_sha256"]
        for name in ("run.json", "provenance.json"):
            assert read_json(folder / "goes_on/seed0" / name)["inputs"]["start_from"] == digest
    shutil.rmtree(folder / "goes_on")


def test_a_checkpoint_of_other_sizes_is_refused(finished: Workspace) -> None:
    write_checkpoint(finished, queries=100)
    params = finished.folder / "params"
    assets = (params / "assets.yaml").read_text()
    other = ASSET.replace("tiny_mask2former", "other_mask2former")
    run = "\nrefused: {sam: b, train: coco, start_from: other_mask2former}\n"
    runs = (params / "runs.yaml").read_text()
    with edited(params / "assets.yaml", assets, assets + other):
        with edited(params / "runs.yaml", runs, runs + run):
            missing = finished.possam("train", "refused", "--scale", "smoke", check=False)
            assert missing.returncode == 2 and "possam download other_mask2former" in missing.stderr
            finished.possam("download", "other_mask2former", "--scale", "smoke")
            before = finished.files()
            done = finished.possam("train", "refused", "--scale", "smoke", check=False)
            assert done.returncode == 2 and "Traceback" not in done.stderr
            assert "queries 100 (here 30)" in done.stderr
            assert "other_mask2former.safetensors" in done.stderr
            assert finished.files() == before
