"""dvc.yaml, written by hand, names what exists, and no result that DVC could remove."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.figures import load_figures
from possam.params.project import Project
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import find_job

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "dvc.yaml").read_text()
NOT_RESULTS = {f"params/{name}.yaml" for name in ("calibration", "data", "plan", "slurm")}
"""They say where files and machines are and what a world aims at, and decide no result."""


@pytest.fixture
def content() -> dict[str, Any]:
    return yaml.safe_load(TEXT)


def outs(stage: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        path: flags
        for kind in ("outs", "metrics", "plots")
        for entry in stage.get(kind, ())
        for path, flags in entry.items()
    }


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 60


def test_no_out_is_removed_before_a_stage_runs(content: dict[str, Any]) -> None:
    for stage in content["stages"].values():
        flags = outs(stage.get("do", stage))
        assert flags and all(one["persist"] is True for one in flags.values())


def test_it_knows_every_parameter_file_that_decides_a_result(content: dict[str, Any]) -> None:
    named = {path for entry in content["stages"]["mini"]["params"] for path in entry}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "params").glob("*.yaml")}
    assert named == (files - NOT_RESULTS) | {"params/scales/mini.yaml"}


def test_tables_columns_and_figures_exist(content: dict[str, Any]) -> None:
    project = Project("mini", folder=ROOT / "params")
    (targets,), (tables,), (figures,) = ([v[k] for v in content["vars"] if k in v]
                                         for k in ("targets", "tables", "figures"))  # fmt: skip
    for name, column in tables.items():
        assert column in {one.key for one in project.tables[name].columns}
        assert f"results/mini/{name}.csv" in targets.split()
    for name in figures:
        assert name in load_figures(project)
        assert f"results/mini/figures/{name}.json" in targets.split()
    assert all(find_job(target) for target in targets.split())


@pytest.mark.parametrize("stage", ["table", "figure"])
def test_a_stage_s_outs_are_the_files_of_its_job_and_the_record(
    stage: str, content: dict[str, Any]
) -> None:
    named = {
        re.sub(r"\$\{\w+\}", f"{{{stage}}}", path).replace("results/mini/", "results/{prefix}")
        for path in outs(content["stages"][stage]["do"])
    }
    first, *others = STAGES[stage].outputs
    record = f"{first.rsplit('.', 1)[0]}.snakemake"
    assert named == {first, *others, record}


def test_what_dvc_may_remove_is_only_links(content: dict[str, Any]) -> None:
    """Without a hash in dvc.lock, ``dvc exp run`` and ``dvc checkout`` remove a cached out."""
    for stage in content["stages"].values():
        for path, flags in outs(stage.get("do", stage)).items():
            assert path.startswith("stored/") or flags["cache"] is False, path


def test_what_is_stored_is_what_the_stages_say(content: dict[str, Any]) -> None:
    stored = [path.replace("stored/mini/", "") for path in outs(content["stages"]["mini"])]
    for stage in STAGES.values():
        first = re.sub(r"^(data/\{scale\}/|results/\{prefix\})", "", stage.outputs[0])
        inside = any(first.startswith(f"{folder}/") for folder in stored)
        assert inside == (stage.stored and stage.name not in ("table", "figure")), stage.name


def test_the_root_has_links_only_to_profiles() -> None:
    command = ("git", "ls-files", "--stage", ":(glob)*")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    links = [line.split("\t")[1] for line in done.stdout.splitlines() if line.startswith("120000")]
    assert links == ["gpu", "slurm"]
