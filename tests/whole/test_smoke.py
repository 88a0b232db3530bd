"""The whole pipeline at smoke scale: every rule runs, and only what changed runs again."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from possam.evaluation.options import PROBES
from possam.params.project import Project
from possam.runtime.files import read_json, sha256_file
from possam.training.checkpoint import read_metadata
from tests.whole.conftest import TARGETS, Workspace, removing_what_is_made

pytestmark = pytest.mark.pipeline


@contextmanager
def edited(path: Path, old: str, new: str) -> Iterator[None]:
    """``path`` with ``old`` replaced by ``new``, put back afterwards."""
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))
    try:
        yield
    finally:
        path.write_text(text)


def planned(workspace: Workspace) -> set[tuple[str, str]]:
    """Jobs of a dry run as (rule, wildcards)."""
    output = workspace.snakemake("-n", "--quiet", "host", "--", *TARGETS)
    jobs: set[tuple[str, str]] = set()
    for block in re.split(r"\n\s*\n|\n\[", output):
        rule = re.search(r"^(?:local)?rule (\w+):", block, re.MULTILINE)
        if rule:
            wildcards = re.search(r"wildcards: (.*)", block)
            jobs.add((rule.group(1), wildcards.group(1) if wildcards else ""))
    return jobs


def test_table1_is_complete(finished: Workspace) -> None:
    rows = list(csv.DictReader((finished.folder / TARGETS[0]).open()))
    published = list(
        csv.DictReader((finished.folder / "params/published/table1_panoptic.csv").open())
    )
    (floor,) = (row for row in rows if row["source"] == "training_free")
    rows.remove(floor)
    assert [row["row"] for row in rows if row["source"] != "later"] == [
        row["method"] for row in published[:9]
    ]
    columns = [name for name in published[0] if name not in {"method", "venue"}]
    assert len(columns) == 10
    assert all(0 <= float(floor[f"{name}_low"]) <= float(floor[name]) <= 100 for name in columns)
    for row, paper in zip(rows, published, strict=True):
        ours = row["row"].startswith(("PosSAM", "FC-CLIP"))
        assert row["source"] in (("reproduced",) if ours else ("published", "later"))
        for name in columns:
            if ours:
                low, value, high = (float(row[f"{name}{s}"]) for s in ("_low", "", "_high"))
                assert 0 <= low <= high <= 100 and 0 <= value <= 100
                assert row[f"{name}_published"] == paper[name]
                if paper[name]:
                    difference = pytest.approx(value - float(paper[name]), abs=1e-6)
                    assert float(row[f"{name}_difference"]) == difference
            else:
                assert row[name] == paper[name] or float(row[name]) == float(paper[name])
    markdown = (finished.folder / "results/smoke/table1.md").read_text()
    assert "synthetic" in markdown.lower() and "shuffled" in markdown


def test_every_result_has_its_provenance(finished: Workspace) -> None:
    results = finished.folder / "results/smoke"
    runs = sorted(results.glob("runs/*/seed0/run.json"))
    evaluations = sorted(results.glob("evaluations/*/seed0/*/*/evaluation.json"))
    assert len(runs) == 8 and len(evaluations) >= 14
    for path in [*runs, *evaluations]:
        provenance = read_json(path.with_name("provenance.json"))
        assert provenance["packages"]["torch"] and "commit" in provenance["git"]
        assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in provenance["inputs"].values())
    for path in runs:
        run = read_json(path)
        assert run["weights_sha256"] == sha256_file(path.with_name("weights.safetensors"))
        steps = [json.loads(line)["step"] for line in path.with_name("metrics.jsonl").open()]
        assert (
            steps == sorted(set(steps)) and steps[-1] == run["parameters"]["training"]["iterations"]
        )


def test_pq_was_checked_against_panopticapi(finished: Workspace) -> None:
    paths = list(finished.folder.glob("results/smoke/evaluations/*/*/*/*/evaluation.json"))
    assert len(paths) >= 14
    project = Project("smoke", folder=finished.folder / "params")
    for path in paths:
        content = read_json(path)
        place = [content[key] for key in ("run", "benchmark", "condition")]
        variants = content["variants"]
        asked = variants.keys() - PROBES.keys()
        if place[0] in project.training_free:
            assert asked == {"default"}
        else:
            assert asked == set(project.variants_at(*place)), "what the tables ask for"
        for found in (variants[name] for name in asked):
            assert found["check"]["panopticapi_pq"] == found["metrics"]["pq"]


def test_a_second_call_does_nothing(finished: Workspace) -> None:
    assert "Nothing to be done" in finished.snakemake(*TARGETS)


def test_touching_every_source_file_changes_nothing(finished: Workspace) -> None:
    for name in ("params", "workflow", "profiles", "possam", "data/towers", "results", "README.md"):
        top = finished.folder / name
        for path in [top, *top.rglob("*")] if top.is_dir() else [top]:
            os.utime(path)
    assert "Nothing to be done" in finished.snakemake(*TARGETS)


def test_comments_and_docstrings_change_nothing(finished: Workspace) -> None:
    losses = finished.folder / "possam/training/losses.py"
    losses_text = losses.read_text()
    first = losses_text.splitlines()[0]
    with edited(
        losses, losses_text, losses_text.replace(first, first + " Edited.", 1) + "# note\n"
    ):
        with edited(finished.folder / "params/runs.yaml", "# Every", "# Edited. Every"):
            assert planned(finished) == set()


def test_a_loss_weight_of_one_run_reruns_that_run_and_what_depends_on_it(
    finished: Workspace,
) -> None:
    runs = finished.folder / "params/runs.yaml"
    old = "possam_l_coco: {sam: l, train: coco}"
    with edited(runs, old, "possam_l_coco: {sam: l, train: coco, loss: {dice_weight: 4.0}}"):
        jobs = planned(finished)
    assert {rule for rule, _ in jobs} == {"train", "evaluate", "table", "track"}
    assert all("possam_l_coco" in w for rule, w in jobs if rule in {"train", "evaluate"})
    assert len(jobs) == 4


def test_a_variant_in_a_table_reevaluates_that_run_on_that_benchmark(finished: Workspace) -> None:
    tables = finished.folder / "params/tables.yaml"
    old = "ade_coco: {run: possam_l_ade20k, benchmark: coco}"
    with edited(tables, old, old.replace("coco}", "coco, variant: geometric}")):
        jobs = planned(finished)
    assert sorted(rule for rule, _ in jobs) == ["evaluate", "table", "track"]
    (where,) = (wildcards for rule, wildcards in jobs if rule == "evaluate")
    assert all(part in where for part in ("run=possam_l_ade20k", "seed=0", "condition=trained"))
    variants = finished.folder / "params/variants.yaml"
    with edited(variants, "ldp_only: {ensemble: ldp}", "ldp_only: {ensemble: ldp, alpha: 0.1}"):
        jobs = planned(finished)
    (where,) = (wildcards for rule, wildcards in jobs if rule == "evaluate")
    assert "run=possam_h_coco" in where and "benchmark=ade20k" in where, "Table 7 asks for it"
    with edited(variants, "default: {}", "default: {}\nunused: {alpha: 0.1}"):
        assert planned(finished) == set(), "no table asks for it"


def test_a_second_seed_trains_and_evaluates_everything_once_more(finished: Workspace) -> None:
    with edited(finished.folder / "params/scales/smoke.yaml", "seeds: [0]", "seeds: [0, 1]"):
        jobs = planned(finished)
    rules = [rule for rule, _ in jobs]
    assert {rule: rules.count(rule) for rule in rules} == {
        **{"train": 8, "evaluate": 12},
        **{"table": 1, "track": 1},
    }
    assert all("seed=1" in w for rule, w in jobs if rule in {"train", "evaluate"})
    with edited(finished.folder / "params/scales/paper.yaml", "seeds: [0]", "seeds: [0, 1]"):
        output = finished.snakemake("-n", "results/table1.csv")
    for line in (r"train\s+16", r"evaluate\s+24", r"table\s+1"):
        assert re.search(line, output), line


def test_changed_code_reruns_the_stages_that_use_it(finished: Workspace) -> None:
    ensemble = finished.folder / "possam/model/ensemble.py"
    text = ensemble.read_text()
    with edited(ensemble, text, text + "\n_CHANGED = 1\n"):
        rules = {rule for rule, _ in planned(finished)}
    assert rules == {"evaluate", "training_free", "table", "track"}


def test_the_paper_scale_can_be_planned(finished: Workspace) -> None:
    output = finished.snakemake("-n", "results/table1.csv")
    for line in (r"train\s+8", r"evaluate\s+12", r"convert\s+4", r"table\s+1"):
        assert re.search(line, output), line


def test_mlflow_holds_the_runs_the_evaluations_and_the_table(finished: Workspace) -> None:
    code = (
        "import mlflow, json; mlflow.set_tracking_uri('sqlite:///mlflow.db');"
        "e = mlflow.search_experiments(filter_string=\"name = 'possam-smoke'\")[0];"
        "r = mlflow.search_runs([e.experiment_id]);"
        "print(json.dumps(sorted(r['tags.possam.kind'])))"
    )
    kinds = json.loads(finished.run(sys.executable, "-c", code).stdout.splitlines()[-1])
    counts = {kind: kinds.count(kind) for kind in ("training", "evaluation", "table")}
    assert counts == {"training": 8, "evaluation": 14, "table": 1}


LONGER = "\nkilled: {sam: b, train: coco, training: {iterations: 16, milestones: [12]}}\n"
"""A run with several checkpoints."""


def kill(workspace: Workspace, *command: str, directory: Path) -> None:
    """Start a training and kill it after its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "possam.cli", *command],
        cwd=workspace.folder,
        env=workspace.environment(),
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(directory.glob("checkpoints/step_*")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (directory / "weights.safetensors").exists()


def test_after_a_fix_a_killed_training_goes_on_and_the_pipeline_takes_it(
    finished: Workspace,
) -> None:
    edits = Workspace(finished.folder)  # without the fork server, whose own code is never edited
    runs, losses = edits.folder / "params/runs.yaml", edits.folder / "possam/training/losses.py"
    directory = edits.folder / "results/smoke/runs/killed/seed0"
    target = str((directory / "run.json").relative_to(edits.folder))
    superseded = edits.folder / "results/smoke/superseded"
    command = ("train", "killed", "--scale", "smoke")

    def train(*options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return edits.run(sys.executable, "-m", "possam.cli", *command, *options, check=check)

    def fixed() -> AbstractContextManager[None]:
        text = losses.read_text()
        return edited(losses, text, text + "\n_CHANGED = 1\n")

    def tensors() -> dict[str, Any]:
        return load_file(directory / "weights.safetensors")

    with (
        edited(runs, runs.read_text(), runs.read_text() + LONGER),
        removing_what_is_made(finished),
    ):
        kill(edits, *command, directory=directory)
        before = read_json(directory / "identity.json")["hash"]
        with fixed():
            with edited(runs, "iterations: 16", "iterations: 20"):
                refused = train("--accept-code", check=False)
            assert refused.returncode == 2
            assert "parameters.training.iterations: 16 -> 20" in refused.stderr
            assert "going on after step" in train("--accept-code").stdout
            result = read_json(directory / "run.json")
            (change,) = result["accepted_code"]
            assert change["before"]["identity"] == before
            assert change["after"]["identity"] == result["identity"] != before
            assert 0 < change["steps"] < 16 and change["after"]["git"]["commit"]
            for record in ("identity.json", "provenance.json"):
                assert read_json(directory / record)["accepted_code"] == [change]
            metadata = read_metadata(directory / "weights.safetensors")
            assert metadata["accepted_code"] == [change]
        accepted = tensors()

        # Back to the old code: Snakemake makes a training of its own, bit for bit the same.
        (directory / "run.json").unlink()
        edits.snakemake(target)
        assert read_json(directory / "run.json")["accepted_code"] == []
        trained = tensors()
        assert trained.keys() == accepted.keys()
        assert all(trained[name].equal(accepted[name]) for name in trained)
        with fixed():
            assert "taken back" in train().stdout
            # Its record is of the old code: it calls the command, which has nothing to do.
            assert "Nothing to be done" not in edits.snakemake(target)
            assert read_json(directory / "run.json") == result
            assert "Nothing to be done" in edits.snakemake(target)
        shutil.rmtree(superseded)


def test_a_killed_training_ends_with_the_same_weights(finished: Workspace) -> None:
    runs = finished.folder / "params/runs.yaml"
    with edited(runs, runs.read_text(), runs.read_text() + LONGER):
        command = ("train", "killed", "--scale", "smoke")
        directory = finished.folder / "results/smoke/runs/killed/seed0"
        kill(finished, *command, directory=directory)
        finished.possam(*command)
        resumed = sha256_file(directory / "weights.safetensors")
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        finished.possam(*command)
        assert sha256_file(directory / "weights.safetensors") == resumed
