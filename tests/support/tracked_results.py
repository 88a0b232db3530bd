"""Result files as the pipeline writes them, for the tests of tracking."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from possam.params.layout import RUN_LOCK
from possam.params.project import Project
from possam.params.reading import validate
from possam.params.tables import TableParams
from possam.runtime.files import write_json
from possam.runtime.locks import hold

START = "2024-05-01T10:00:00+00:00"
START_MS = 1714557600000
PARAMETERS: dict[str, Any] = {
    "model": {"queries": 30, "pooling": "ldp"},
    "templates": ["a {}", "{}"],
    "seed": 3,
}
INPUTS = {"dataset": "d" * 64, "sam": "5" * 64}
PROVENANCE: dict[str, Any] = {
    "started": START,
    "wall_time_s": 60.0,
    "git": {"commit": "c" * 40, "dirty": True},
}


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


def write_training(
    results: Path,
    *,
    steps: int = 5,
    finished: bool = True,
    run: str = "full",
    parameters: dict[str, Any] = PARAMETERS,
) -> Path:
    folder = results / "runs" / run / "seed3"
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"run": run, "parameters": parameters}
    if not (folder / "identity.json").exists():  # as a training does
        write_json(folder / "identity.json", {"hash": "i" * 64, "identity": identity})
    lines = [log_line(step, 1.0 / (step + 1)) for step in range(0, 20 * steps, 20)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    if finished:
        write_json(folder / "provenance.json", PROVENANCE)
        summary = {
            "identity": "i" * 64,
            "state": "finished",
            "parameters": parameters,
            "inputs": INPUTS,
            "trainable_parameters": 123,
            "summary": {"skipped": 2},
        }
        write_json(folder / "run.json", summary)
        (folder / "weights.safetensors").write_bytes(run.encode())
    return folder


def live(folder: Path) -> AbstractContextManager[None]:
    """A process that trains in ``folder``."""
    return hold(folder / RUN_LOCK, timeout=0)


def write_evaluation(
    results: Path, *, condition: str = "trained", pq: float = 20.5, run: str = "full"
) -> Path:
    path = results / "evaluations" / run / "seed3/ade" / condition / "evaluation.json"
    default = {
        "metrics": {"pq": pq, "map": None},
        "intervals": {"pq": [pq - 1, pq + 1]},
        "check": {"panopticapi_pq": pq},
        "protocol": {"miou": "ground truth classes", "class_names_hash": "n" * 64},
    }
    geometric = {
        "metrics": {"pq": pq / 2},
        "intervals": {"pq": None},
        "check": None,
        "protocol": {"miou": "union", "inference": {"ensemble": "geometric"}},
    }
    content = {
        "inputs": INPUTS,
        "counts": {"images": 400},
        "variants": {"default": default, "geometric": geometric},
    }
    write_json(path, content)
    inference = {"default": {"alpha": 0.4, "ensemble": "mase"}}
    if condition == "trained":
        inference["geometric"] = {"alpha": 0.4, "ensemble": "geometric"}
    parameters = {"run": run, "seed": 3, "inference": inference}
    write_json(path.with_name("provenance.json"), {**PROVENANCE, "parameters": parameters})
    return path


def write_figure(results: Path) -> Path:
    path = results / "figures" / "bars.json"
    parameters = {"kind": "seen_unseen", "title": "Bars", "run": "full"}
    card = {"title": "Bars", "subtitle": "synthetic", "note": None, "parameters": parameters}
    write_json(path, card)
    for suffix in (".png", ".pdf"):
        path.with_suffix(suffix).write_bytes(b"drawn")
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
