"""A study of one run with two seeds, whose evaluations are drawn from a seed."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from possam.evaluation.semantic import SemanticCounts
from possam.evaluation.statistics import ImageStatistics
from possam.evaluation.summary import write_variants
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.files import write_json

PARAMS = Path(__file__).resolve().parents[2] / "params"
TABLE = {
    "title": "Table",
    "published": "small.csv",
    "groups": {"g": "Direction"},
    "columns": [{"key": "miou", "group": "g", "metric": "miou", "title": "mIoU"}],
    "rows": [
        {
            "name": "Ours",
            "cells": {"g": {"run": "full", "benchmark": "test", "variant": "geometric"}},
        }
    ],
}


def write_params(root: Path) -> None:
    """Parameters of one run with the seeds 5 and 2, and of a table of its mIoU, in ``root``."""
    folder = Path(shutil.copytree(PARAMS, root / "params"))
    files = {
        "runs": {"full": {"sam": "b", "train": "coco"}},
        "benchmarks": {"test": {"dataset": "coco", "split": "val", "metrics": ["semantic"]}},
        "tables": {"table1": TABLE},
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "published" / "small.csv").write_text("method,venue,miou\nOurs,,41.5\n")
    scale = folder / "scales" / "smoke.yaml"
    scale.write_text(scale.read_text().replace("seeds: [0]", "seeds: [5, 2]"))


def write_evaluation(
    project: Project,
    seed: int,
    *,
    variant: str,
    root: Path = Path("."),
    better: int = 0,
    commit: str = "a",
) -> ImageStatistics:
    """Write the run's evaluation; returns its per-image statistics.

    Args:
        better: additional correct pixels in each class and image.
        commit: the digit that the commit's hash repeats; ``d``: with uncommitted changes.
    """
    rng = np.random.default_rng(seed)
    hit = rng.integers(0, 20, (15, 3))
    target = hit + rng.integers(5, 30, hit.shape)
    counts = SemanticCounts(hit + better, hit + 3 + better, target)
    flags = (True, False, True)
    table = ImageStatistics(tuple(range(15)), flags, flags, semantic=counts)
    part: dict[str, Any] = {
        "metrics": {name: float(value[0]) for name, value in table.metrics().items()},
        "intervals": {},
        "per_class": [{"thing": flag, "seen": flag} for flag in flags],
        "protocol": {},
        "check": None,
    }
    where = {"run": "full", "seed": seed, "benchmark": "test", "condition": "trained"}
    inputs = {"dataset": "of one content"}
    result = {**where, "scale": project.name, "inputs": inputs, "variants": {variant: part}}
    folder = Layout(project, root=root).evaluation(**where)
    write_variants(folder, result, {variant: table})
    write_json(folder / "provenance.json", {"git": {"commit": commit * 40, "dirty": commit == "d"}})
    return table
