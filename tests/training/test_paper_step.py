"""Models of the paper's size take two optimiser steps on a real image, on a CPU, within 20 GiB.

SAM ViT-H or B, CLIP ConvNeXt-L d_320, 250 queries, crops of 1024 x 1024 (``paper``) or 512 x 512
(``lab``), by ``possam train`` as it is, with bf16 autocast and towers in bf16. The towers are
random, in files of the official layouts, found as a user's data root. Differences from the paper's
parameters: one image a step, two steps, one template, and the machine's number of threads.
"""

import gc
import math
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from possam.model.encoders.clip import build_open_clip
from possam.model.encoders.sam import build_sam, find_architecture
from possam.model.possam import rebuild_possam
from possam.runtime.files import read_json
from possam.training.checkpoint import read_metadata
from tests.support.layouts import convert_coco

pytestmark = pytest.mark.paper_step

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT = 20 * 2**30
"""Bytes of resident memory."""


def write_weights(folder: Path, files: dict[str, str], size: str) -> None:
    """Random towers in the official layouts, in fp32 as they are published."""
    folder.mkdir()
    torch.manual_seed(0)
    sam = f"sam_vit_{size}"
    torch.save(build_sam(find_architecture(f"vit_{size}")).state_dict(), folder / files[sam])
    model, _, _ = build_open_clip("convnext_large_d_320")
    torch.save(model.state_dict(), folder / files["clip_convnext_large_d_320"])
    del model
    gc.collect()


def write_parameters(folder: Path, size: str, scale_name: str) -> dict[str, str]:
    """The paper's parameters but for the size of the run; file names of the towers' assets."""
    shutil.copytree(REPOSITORY / "params", folder / "params")
    path = folder / "params" / "scales" / f"{scale_name}.yaml"
    scale = yaml.safe_load(path.read_text())
    scale["threads"] = os.cpu_count() or 1
    scale["templates"] = ["a photo of a {}."]
    scale["training"] |= {"iterations": 2, "batch_size": 1, "micro_batch": 1, "workers": 0}
    scale["training"] |= {"log_every": 1}
    path.write_text(yaml.safe_dump(scale))
    path = folder / "params" / "assets.yaml"
    assets = yaml.safe_load(path.read_text())
    files = {}
    for name in (f"sam_vit_{size}", "clip_convnext_large_d_320"):
        assets[name] |= {"checksum": None, "size": None}
        files[name] = assets[name]["file"]
    path.write_text(yaml.safe_dump(assets))
    return files


def possam(folder: Path, scale: str, *arguments: str) -> tuple[resource.struct_rusage, float]:
    """Run the command; its own resources, and seconds."""
    command = [sys.executable, "-m", "possam.cli", *arguments, "--scale", scale]
    roots = {"POSSAM_DATA_ROOTS_WEIGHTS": str(folder / "weights")}
    started = time.monotonic()
    process = subprocess.Popen(command, cwd=folder, env=os.environ | roots)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage, time.monotonic() - started


@pytest.mark.parametrize(("scale", "size"), [("paper", "h"), ("lab", "b")])
def test_two_steps(
    scale: str, size: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"possam_{size}_coco"
    files = write_parameters(tmp_path, size, scale)
    write_weights(tmp_path / "weights", files, size)
    source = shared / "samples" / "coco"
    convert_coco(
        images=source / "val2017",
        panoptic_json=source / "annotations" / "panoptic_val2017.json",
        panoptic_png=source / "annotations" / "panoptic_val2017",
        instances_json=None,
        class_names=shared / "upstream" / "openseg_labels" / "coco_panoptic_with_prompt_eng.txt",
        split="train",
        out=tmp_path / "data/paper/datasets/coco_train",
        workers=1,
    )
    possam(tmp_path, scale, "download", *files)
    usage, seconds = possam(tmp_path, scale, "train", name)
    peak = usage.ru_maxrss * 1024
    with capsys.disabled():
        print(f"\n{name}, {scale} scale, CPU: peak {peak / 2**30:.2f} GiB, {seconds:.0f} s in all")
    folder = tmp_path / f"results/{'' if scale == 'paper' else 'lab/'}runs/{name}/seed0"
    lines = [yaml.safe_load(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = read_json(folder / "training.json")
    assert (summary["steps"], summary["skipped"]) == (2, 0)
    assert [line["step"] for line in lines] == [1, 2]
    assert all(math.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    moved, total = parameters_that_moved(folder)
    assert total == read_json(folder / "run.json")["trainable_parameters"] == 51_274_098
    assert moved > 0.99 * total
    assert peak < LIMIT


def parameters_that_moved(folder: Path) -> tuple[int, int]:
    """How many trained numbers differ from their initial values, and how many there are."""
    trained = load_file(folder / "weights.safetensors")
    metadata = read_metadata(folder / "weights.safetensors")
    initial = dict(rebuild_possam(metadata["model"], seed=0).named_parameters())
    moved = sum(int((trained[name] != value).sum()) for name, value in initial.items())
    return moved, sum(value.numel() for value in initial.values())
