"""At the mini scale: runs that train together end as each by itself, bit for bit, after a SIGKILL.

``make together`` makes the data set and the cached features first. The scales here differ from
``mini`` in the number of steps, and ``live`` also runs the towers, on crops, in every step.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.runtime.files import read_json, sha256_file
from possam.training.checkpoint_paths import finished_steps
from possam.training.metrics import TIME_FIELDS

pytestmark = pytest.mark.together

REPOSITORY = Path(__file__).resolve().parents[2]
RUNS = {
    "b": ("possam_b_coco", "no_iou_b_coco"),
    "h": ("possam_h_coco", "clip_pooling_h_coco"),
}
"""Two models behind one SAM."""
SCALES: dict[str, dict[str, Any]] = {
    "cached": {"iterations": 60, "milestones": [40, 50], "checkpoint_every": 10, "log_every": 10},
    "live": {
        "iterations": 12,
        "warmup": 2,
        "milestones": [8, 10],
        "checkpoint_every": 2,
        "log_every": 2,
        "feature_cache": False,
        "augmentation": {"policy": "lsj", "min_scale": 0.5, "max_scale": 2.0},
    },
}


def workplace(folder: Path) -> Path:
    """A folder to call ``possam`` in, with the data of this checkout."""
    shutil.copytree(REPOSITORY / "params", folder / "params")
    for name, training in SCALES.items():
        scale = {"based_on": "mini", "data_of": "mini", "title": name, "training": training}
        (folder / f"params/scales/{name}.yaml").write_text(yaml.safe_dump(scale))
    (folder / "data").symlink_to(REPOSITORY / "data")
    return folder


def start(folder: Path, scale: str, *runs: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "possam", "train", *runs, "--scale", scale],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train(folder: Path, scale: str, *runs: str) -> str:
    process = start(folder, scale, *runs)
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
    return printed


def kill_halfway(folder: Path, scale: str, *runs: str) -> int:
    """Kill the training after half of its steps; returns the step of its newest checkpoint."""
    process = start(folder, scale, *runs)
    half = SCALES[scale]["iterations"] // 2
    kept = [folder / f"results/{scale}/runs/{run}/seed0/checkpoints" for run in runs]
    while process.poll() is None and min(map(finished_steps, kept)) < half:
        time.sleep(0.05)
    time.sleep(1.0)  # into the steps after the checkpoint
    process.send_signal(signal.SIGKILL)
    printed, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, printed
    return min(map(finished_steps, kept))


def outcome(folder: Path, scale: str, run: str) -> dict[str, Any]:
    directory = folder / f"results/{scale}/runs/{run}/seed0"
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {
        "weights": sha256_file(directory / "weights.safetensors"),
        "identity": read_json(directory / "run.json")["identity"],
        "metrics": [{k: v for k, v in line.items() if k not in TIME_FIELDS} for line in lines],
    }


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("sam", RUNS)
def test_runs_of_a_killed_group_end_as_each_by_itself(
    tmp_path: Path, scale: str, sam: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, began = RUNS[sam], time.monotonic()
    alone, together = (workplace(tmp_path / name) for name in ("alone", "together"))
    for run in runs:
        train(alone, scale, run)
    between = time.monotonic()
    killed = kill_halfway(together, scale, *runs)
    assert SCALES[scale]["iterations"] // 2 <= killed < SCALES[scale]["iterations"]
    printed = train(together, scale, *runs)
    assert printed.count("going on after step ") == len(runs)
    for run in runs:
        own = outcome(alone, scale, run)
        assert outcome(together, scale, run) == own
        summary = read_json(together / f"results/{scale}/runs/{run}/seed0/training.json")
        assert summary["together"] == len(runs)
        with capsys.disabled():
            print(f"\n{scale} {run}: sha256 {own['weights']}, alone and together", end="")
    with capsys.disabled():
        spent = between - began, time.monotonic() - between
        print(f"\n{scale} {sam}: killed after step {killed}; seconds {spent}")
