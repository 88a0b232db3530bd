"""Result files as the pipeline writes them, for the tests of tracking."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

from possam.checked_yaml import validate
from possam.files import write_json
from possam.params import Project
from possam.table_params import TableParams

START = "2024-05-01T10:00:00+00:00"
START_MS = 1714557600000
PROVENANCE = {"started": START, "wall_time_s": 60.0, "git": {"commit": "c" * 40, "dirty": True}}


def project() -> Project:
    cell = {"run": "full", "benchmark": "ade"}
    ours = {**cell, "variant": "geometric"}
    table = {
        "title": "Table one",
        "published": "t.csv",
        "groups": {"a": "A"},
        "columns": [{"key": "pq", "group": "a", "metric": "pq", "title": "PQ"}],
        "rows": [{"name": "Ours", "cells": {"a": ours}}, {"name": "Theirs"}],
        "controls": [{"name": "Bare", **cell, "condition": "untrained"}],
    }
    tables = {"table1": validate(TableParams, table, source="test")}
    scale = SimpleNamespace(synthetic=True, seeds=(0, 3))
    return cast(Project, SimpleNamespace(name="mini", prefix="mini/", scale=scale, tables=tables))


def log_line(step: int, loss: float) -> str:
    values = {"step": step, "time": 2.0 * step, "loss": loss, "lr": None}
    return json.dumps({**values, "terms": {"dice": loss / 2}}) + "\n"


def write_training(results: Path, *, steps: int = 5, finished: bool = True, seed: int = 3) -> Path:
    folder = results / "runs" / "full" / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [log_line(step, 1.0 / (step + 1)) for step in range(0, 20 * steps, 20)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    if finished:
        write_json(folder / "provenance.json", PROVENANCE)
        summary = {
            "identity": "i" * 64,
            "state": "finished",
            "parameters": {"model": {"queries": 30, "pooling": "ldp"}, "templates": ["a {}", "{}"]},
            "trainable_parameters": 123,
            "summary": {"skipped": 2},
        }
        write_json(folder / "run.json", summary)
    return folder


def write_evaluation(results: Path, *, condition: str = "trained", pq: float = 20.5) -> Path:
    path = results / "evaluations/full/seed3/ade" / condition / "evaluation.json"
    default = {
        "metrics": {"pq": pq, "map": None},
        "intervals": {"pq": [pq - 1, pq + 1]},
        "check": {"panopticapi_pq": pq},
        "protocol": {"miou": "ground truth classes"},
    }
    geometric = {
        "metrics": {"pq": pq / 2},
        "intervals": {"pq": None},
        "check": None,
        "protocol": {"inference": {"ensemble": "geometric"}},
    }
    content = {
        "counts": {"images": 400},
        "variants": {"default": default, "geometric": geometric},
    }
    write_json(path, content)
    write_json(path.with_name("provenance.json"), {**PROVENANCE, "parameters": {"alpha": 0.4}})
    return path


def write_results(folder: Path) -> Path:
    """A scale's results folder: one training (seed 3), two evaluations, one table."""
    results = folder / "results" / "mini"
    write_training(results)
    write_evaluation(results)
    write_evaluation(results, condition="untrained", pq=1.0)
    (results / "table1.csv").write_text(
        "row,pq,pq_low,a_run\nOurs (B),20.5,19.5,4e12\nTheirs,n/a,,\n"
    )
    (results / "table1.md").write_text("| row | pq |\n|---|---|\n")
    return results
