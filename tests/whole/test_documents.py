"""Every command of README.md and docs/ is run, at smoke scale, in a copy of the project.

The pages that show how to add something are followed as a whole, by tests of their own.
"""

import json
import re
import shutil
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pages import HOW_TO, README, REPOSITORY, apply, commands_of, edits_of
from tests.support.streets import cityscapes, mapillary
from tests.whole.conftest import Workspace, dvc, restore, served

pytestmark = pytest.mark.pipeline

PAGES = [page for page in sorted((REPOSITORY / "docs").glob("*.md")) if page not in HOW_TO]
STORING = ("dvc ", "git ")
COMMANDS = list(dict.fromkeys(line for page in (README, *PAGES) for line in commands_of(page)))


@pytest.fixture(scope="module")
def prepared(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished pipeline with the files and edits that the examples need."""
    workspace = finished.copy(tmp_path_factory.mktemp("documents") / "project")
    for page in PAGES:
        for edit in edits_of(page):
            apply(edit, workspace.folder)
    write_examples(workspace.folder)
    return workspace


def write_examples(folder: Path) -> None:
    Image.effect_noise((96, 80), 60).convert("RGB").save(folder / "photo.jpg")
    (folder / "photos").mkdir()
    shutil.copy(folder / "photo.jpg", folder / "photos")
    (folder / "words.txt").write_text("red disc\ngrass, lawn\n")
    before = folder / "path/to/before/results/smoke/evaluations"
    shutil.copytree(folder / "results/smoke/evaluations", before)
    kept = folder / "results/smoke/measured"  # a study of this very seed
    (kept / "seed0").mkdir(parents=True)
    shutil.copy(folder / "results/smoke/table1.json", kept / "seed0")
    study = json.dumps({"commits": ["a" * 40], "processors": ["this one"]})
    for path in (kept, kept / "seed0"):
        (path / "study.json").write_text(study)
    upstream, raw = folder / "path/to/coco", folder / "data/smoke/raw"
    shutil.copytree(raw / "synthetic_coco_val_images/val2017", upstream / "val2017")
    shutil.copytree(raw / "synthetic_coco_panoptic/annotations", upstream / "annotations")
    instances = raw / "synthetic_coco_instances/annotations/instances_val2017.json"
    shutil.copy(instances, upstream / "annotations")
    names = folder / "data/smoke/assets/synthetic_coco_with_prompt_eng.txt"
    shutil.copy(names, folder / "names.txt")
    own = folder / "my/pictures"
    for split in ("train", "val"):
        name = f"{split}2017"
        shutil.copytree(raw / f"synthetic_coco_{split}_images/{name}", own / name)
    shutil.copytree(raw / "synthetic_coco_panoptic/annotations", own / "annotations")
    shutil.copy(names, folder / "my/names.txt")
    cityscapes(folder / "path/to/cityscapes")
    mapillary(folder / "path/to/vistas")
    for name in ("city.txt", "mv.txt"):
        (folder / name).write_text("7:road\n26:car\n")
    truth = folder / "data/smoke/datasets/coco_val"
    shutil.copy(truth / "annotations.json", folder / "predictions.json")
    shutil.copytree(truth / "panoptic", folder / "predictions")


def test_the_first_two_commands_are_the_main_job_and_the_tests() -> None:
    assert commands_of(README)[:2] == ["make table1", "make test"]


@pytest.fixture(scope="module")
def unpinned(pinned: tuple[Workspace, str], tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small finished pipeline whose results DVC and git do not know yet."""
    workspace = pinned[0].copy(tmp_path_factory.mktemp("readme") / "project")
    restore(workspace)
    dvc(workspace, "remote", "remove", "store")
    (workspace.folder / "dvc.lock").unlink()
    workspace.run("git", "rm", "-r", "--quiet", "--cached", "dvc.lock", "results")
    workspace.run("git", "commit", "--quiet", "--all", "--message", "Not pinned")
    return workspace


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(STORING)])
def test_storing(unpinned: Workspace, command: str) -> None:
    """The commands build on each other: they are run in their order."""
    line = command.replace("mini", "smoke")
    done = unpinned.run("bash", "-ec", f"source .venv/bin/activate; {line}", check=False)
    assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-3000:])
    if command.startswith(("dvc repro", "dvc checkout")):
        assert "up to date" in dvc(unpinned, "status")
    if command == "dvc params diff":
        assert "possam_b_ade20k.loss.dice_weight" in done.stdout
    if command == "dvc plots show":
        assert (unpinned.folder / "dvc_plots/index.html").is_file()


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(STORING)])
def test_command(prepared: Workspace, command: str) -> None:
    if command == "make ui":
        check_ui(prepared)
        return
    line = command.replace("mini", "smoke")
    if command in ("make test", "make parity"):  # this very suite, and one of its own length
        one = "tests/model/test_ensemble.py"
        line = f"PYTEST_ADDOPTS='--collect-only -q -p no:cacheprovider {one}' {command} CORES=1"
    if command == "make study":  # continuous integration runs all of it, as make smoke
        line = "snakemake -n $(make -s -n study | grep -o 're[a-z]*/smoke/[^ ]*')"
    done = prepared.run("bash", "-ec", f"source .venv/bin/activate; {line}", check=False)
    if command.startswith("possam keep"):  # tests/stages/test_keep.py keeps whole studies
        assert done.returncode == 2 and "make the whole study first" in done.stderr
        return
    assert done.returncode == 0, (line, done.stdout[-3000:], done.stderr[-3000:])
    if command.startswith("possam predict"):
        folder = prepared.folder / command.split("--out ")[1]
        if "photos/" in command:
            assert (folder / "exports").is_dir() == ("--export" in command)
            folder /= "photo.jpg"
        names = {"panoptic.png", "panoptic.json", "overlay.png", "embeddings.npz"}
        assert {p.name for p in folder.iterdir()} == names
    if command.startswith("possam export"):
        assert list((prepared.folder / command.split()[3]).glob("*.json"))
    if command == "make study":
        for line in (r"^table\s+7$", r"^report\s+1$"):
            assert re.search(line, done.stdout + done.stderr, re.MULTILINE), line
    if command == "possam compare table1":
        assert "| PosSAM (B) | PQ (COCO -> ADE20K) |" in done.stdout
        assert "one training each says nothing" in done.stdout
    elif command.startswith("possam compare"):
        assert "## PQ" in done.stdout and "+0.0 [+0.0, +0.0]" in done.stdout
    if command.startswith("possam score"):
        assert "PQ: 100.0000" in done.stdout
    if command == "snakemake results/mini/table1.csv":
        assert "Nothing to be done" in done.stdout + done.stderr


def check_ui(workspace: Workspace) -> None:
    """``make ui`` answers with MLflow's page and stops at Ctrl-C."""
    with served(workspace, "make", "ui", port=5000) as address:
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"MLflow" in answer.read()
