"""``params/slurm.yaml``: errors name file and key; what is asked for has no pitfalls."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from possam.params.slurm import Allocation, Allocations, Kind
from possam.runtime.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params"
Edit = Callable[[Callable[[dict[str, Any]], None]], Path]


@pytest.fixture
def edited(tmp_path: Path) -> Edit:
    def edit(change: Callable[[dict[str, Any]], None]) -> Path:
        folder = tmp_path / "params"
        shutil.copytree(PARAMS / "scales", folder / "scales")
        values = yaml.safe_load((PARAMS / "slurm.yaml").read_text())
        change(values)
        (folder / "slurm.yaml").write_text(yaml.safe_dump(values))
        return folder

    return edit


def test_every_scale_and_kind_is_there() -> None:
    allocations = Allocations(folder=PARAMS)
    for scale in (path.stem for path in (PARAMS / "scales").glob("*.yaml")):
        for kind in get_args(Kind):
            assert allocations.of(scale, kind).world_size >= 1


def test_the_paper_trains_on_one_node_of_eight_a100() -> None:
    train = Allocations(folder=PARAMS).of("paper", "train")
    assert train.gpu_request == {"gres": "gpu:a100:8"}
    assert (train.nodes, train.world_size, train.device) == (1, 8, "cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v: v["defaults"].update(gpu=1),
            r"slurm\.yaml: scales\..*: gpu: .*valid keys: .*gpus",
        ),
        (lambda v: v["scales"]["paper"]["train"].update(tasks=4), "one process per GPU"),
        (lambda v: v["scales"]["paper"]["evaluate"].update(minutes="2h"), "evaluate: minutes"),
        (lambda v: v["scales"]["smoke"]["convert"].update(tasks=2), "only trainings"),
        (lambda v: v["scales"].update(huge={}), "unknown scale 'huge'"),
        (lambda v: v["scales"]["smoke"].update(fetch={}), "fetch"),
        (lambda v: v["defaults"].update(account="a; rm -r x"), "account"),
        (lambda v: v["scales"]["mini"]["train"].update(gpu_type="a100"), "gpus of at least 1"),
        (lambda v: v["defaults"].update(extra=["--qos=long"]), r"--qos=long: sets qos .*use qos"),
        (lambda v: v["defaults"].update(extra=["--gres=gpu:1"]), r"use gpus and gpu_type"),
        (lambda v: v["defaults"].update(extra=["--time=1"]), r"use minutes"),
        (lambda v: v["defaults"].update(extra=["--tim=1"]), r"sets time of sbatch; use minutes"),
        (lambda v: v["defaults"].update(extra=["--wrap=x"]), r"set for every job, so remove it"),
        (lambda v: v["defaults"].update(extra=["-A x"]), r"write --name or --name=value"),
        (lambda v: v["defaults"].update(extra="--mail-type=FAIL"), r"defaults|extra"),
        (lambda v: v["defaults"].update(setup=[""]), "setup"),
        (lambda v: v["defaults"].update(qos="a b"), "qos"),
    ],
)
def test_errors_name_file_and_key(edited: Edit, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Allocations(folder=edited(change))


def test_a_scale_without_an_entry_is_told_when_it_is_used(edited: Edit) -> None:
    allocations = Allocations(folder=edited(lambda v: v["scales"].pop("mini")))
    assert allocations.of("smoke", "train").tasks == 2
    listed = "'mini' has no entry; those that have: calibration, lab, paper, smoke"
    with pytest.raises(InputError, match=listed):
        allocations.of("mini", "train")


def test_resources_never_ask_snakemake_for_tasks() -> None:
    """With `gpu` or `tasks` Snakemake's executor asks for tasks a GPU: a stage runs repeatedly."""
    for kind in get_args(Kind):
        resources = Allocations(folder=PARAMS).of("paper", kind).resources
        assert tuple(resources) == Allocation.RESOURCES
        assert not {"tasks", "gpu", "gpus", "nodes", "mpi"} & set(resources)
    evaluate = Allocations(folder=PARAMS).of("paper", "evaluate").resources
    assert evaluate["gres"] == "gpu:a100:1" and evaluate["mem_mb"] == 60 * 1024
    assert (
        Allocations(folder=PARAMS).of("paper", "timing").resources["slurm_extra"] == "--exclusive"
    )


def test_each_kind_asks_for_its_own(edited: Edit) -> None:
    """What a kind says replaces the defaults, lists included."""

    def own(values: dict[str, Any]) -> None:
        values["defaults"] |= {"partition": "cpu", "extra": ["--mail-type=FAIL"]}
        for kind in get_args(Kind):
            entry = values["scales"]["smoke"].setdefault(kind, {})
            entry |= {"partition": f"p-{kind}", "qos": f"q-{kind}", "reservation": f"r-{kind}"}
        values["scales"]["smoke"]["table"] |= {"extra": ["--licenses=x y", "--spread-job"]}

    allocations = Allocations(folder=edited(own))
    for kind in get_args(Kind):
        asked = allocations.of("smoke", kind).resources
        assert (asked["slurm_partition"], asked["qos"]) == (f"p-{kind}", f"q-{kind}")
        assert f"--reservation=r-{kind}" in str(asked["slurm_extra"])
    table = allocations.of("smoke", "table").resources["slurm_extra"]
    assert table == "--reservation=r-table '--licenses=x y' --spread-job"
    other = allocations.of("mini", "convert").resources
    assert (other["slurm_partition"], other["qos"]) == ("cpu", None)
    assert other["slurm_extra"] == "--mail-type=FAIL"


def test_setup_runs_before_a_stage_and_ends_it_where_it_fails(edited: Edit) -> None:
    def prepared(*commands: str) -> subprocess.CompletedProcess[str]:
        folder = edited(lambda v: v["defaults"].update(setup=list(commands)))
        setup = Allocations(folder=folder).of("smoke", "table").resources["setup"]
        shutil.rmtree(folder)
        # As Snakemake runs a command.
        script = f"set -euo pipefail; {setup}echo stage: $SITE"
        return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)

    assert Allocations(folder=PARAMS).of("smoke", "table").resources["setup"] == ""
    # Modules use variables that are not set, and commands that fail inside.
    done = prepared('test -z "$NOT_SET"', "export SITE='here we are'", "false; true")
    assert (done.returncode, done.stdout) == (0, "stage: here we are\n")
    done = prepared("export SITE=x", "module load 'no such'", "echo not reached")
    assert (done.returncode, done.stdout) == (1, "")
    assert "setup in params/slurm.yaml failed: module load 'no such'" in done.stderr
    done = prepared("export SITE=x", 'test -n "$SITE" && unset SITE; false')
    assert done.returncode == 1


def test_a_stage_runs_in_the_container_that_the_file_names(edited: Edit, tmp_path: Path) -> None:
    """With a stand-in for apptainer that prints its arguments, one per line."""
    stand_in = tmp_path / "bin" / "apptainer"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
    stand_in.chmod(0o755)
    image = "/shared/images of us/possam.sif"
    folder = edited(lambda v: v["defaults"].update(container=image, setup=["export SITE=x"]))
    allocations = Allocations(folder=folder)
    for scale, kind, gpu in (("smoke", "table", []), ("paper", "evaluate", ["--nv"])):
        setup = allocations.of(scale, kind).resources["setup"]
        done = subprocess.run(
            ["bash", "-c", f"set -euo pipefail; {setup}possam table 'a b'; echo $SITE"],
            env={"PATH": f"{stand_in.parent}:/usr/bin:/bin"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        here = str(tmp_path)
        words = ["exec", *gpu, "--bind", here, "--pwd", here, image, "possam", "table", "a b", "x"]
        assert done.stdout.splitlines() == words


def test_the_example_of_another_cluster_is_followed_literally(edited: Edit) -> None:
    """The YAML of docs/your-cluster.md, put into params/slurm.yaml as the page says."""
    page = (ROOT / "docs/your-cluster.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)

    def put(values: dict[str, Any], edits: dict[str, Any]) -> None:
        for key, edit in edits.items():
            if isinstance(edit, dict):
                put(values[key], edit)
            else:
                assert key in values or key in Allocation.model_fields
                values[key] = edit

    folder = edited(lambda values: put(values, yaml.safe_load(example)))
    train = Allocations(folder=folder).of("paper", "train")
    assert (train.account, train.partition) == ("vision", "gpu")
    assert train.gpu_request == {"gres": "gpu:h100:4"}
    assert (train.nodes, train.tasks, train.world_size, train.minutes) == (2, 4, 8, 720)
    assert (train.memory_gib, train.device, train.max_requeues) == (240, "cuda", 20)
    scale = yaml.safe_load((PARAMS / "scales/paper.yaml").read_text())["training"]
    assert scale["batch_size"] / scale["micro_batch"] % train.world_size == 0
    convert = Allocations(folder=folder).of("paper", "convert")
    assert (convert.account, convert.partition, convert.gpu_request) == ("vision", "gpu", {})


def test_the_page_explains_every_key() -> None:
    page = (ROOT / "docs/your-cluster.md").read_text()
    rows = re.findall(r"^\| `.*?\|", page, re.MULTILINE)
    explained = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert explained == set(Allocation.model_fields)
