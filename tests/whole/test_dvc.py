"""DVC pins, stores and brings back what Snakemake makes, and makes again what an edit asks for."""

import json
import re
import shutil
from pathlib import Path

import pytest

from possam.pipeline.records import METADATA
from possam.runtime.files import hash_file, read_json, sha256_file
from tests.whole.conftest import Workspace, dvc, restore
from tests.whole.test_smoke import edited

pytestmark = pytest.mark.pipeline

TABLE = "results/smoke/table1.csv"
METRICS = "results/smoke/table1.metrics.json"
REMADE = ["evaluate", "figure", "table", "train"]
RUNS = ("possam_b_coco", "possam_b_ade20k")
STAGES = {"smoke", "table@table1", "figure@training_curves"}
"""All stages; every edit reaches all of them, and Snakemake decides what is made again."""


def weight(value: float) -> tuple[str, str]:
    """An edit of params/runs.yaml: a loss weight of one run."""
    old = "possam_b_ade20k: {sam: b, train: ade20k}"
    return old, old.replace("ade20k}", f"ade20k, loss: {{dice_weight: {value}}}}}")


def ran(output: str) -> list[str]:
    """Stages whose command was run."""
    return re.findall(r"^Running stage '(.*)':", output, re.MULTILINE)


def made(output: str) -> list[str]:
    """Rules of the jobs that Snakemake finished."""
    return re.findall(r"^Finished jobid: \d+ \(Rule: (\w+)\)", output, re.MULTILINE)


def weights(workspace: Workspace) -> dict[str, str]:
    folder = workspace.folder / "results/smoke/runs"
    return {run: sha256_file(folder / run / "seed0/weights.safetensors") for run in RUNS}


def clone(workspace: Workspace, folder: Path) -> Workspace:
    workspace.run("git", "clone", "--quiet", ".", str(folder))
    fresh = Workspace(folder, workspace.server)
    assert not (folder / "stored").exists() and not (folder / METADATA).exists()
    store = workspace.folder.parent / "store"
    dvc(fresh, "remote", "modify", "--local", "store", "url", str(store))
    dvc(fresh, "pull", "--quiet")
    return fresh


@pytest.fixture
def stored(pinned: tuple[Workspace, str]) -> Workspace:
    """The pinned copy of the project, as it was committed."""
    workspace, _ = pinned
    restore(workspace)
    return workspace


def test_repro_pins_what_snakemake_made_and_then_does_nothing(
    pinned: tuple[Workspace, str], stored: Workspace
) -> None:
    _, output = pinned
    assert set(ran(output)) == STAGES
    assert set(made(output)) == {"evaluate", "figure", "table"}, (
        "the other tables' variants are gone"
    )
    again = dvc(stored, "repro")
    assert "up to date" in again and not ran(again)
    assert "up to date" in dvc(stored, "status")
    assert stored.run("git", "status", "--porcelain").stdout == ""
    assert "Nothing to be done" in stored.snakemake(TABLE)


def test_tables_are_git_s_and_what_is_large_is_dvc_s(stored: Workspace) -> None:
    names = stored.run("git", "ls-files", "results", "data", ".snakemake").stdout.split()
    assert {name for name in names if not name.startswith("data/towers/")} == {
        *(
            f"results/smoke/table1.{suffix}"
            for suffix in ("csv", "json", "md", "metrics.json", "snakemake", "tex")
        ),
        *(
            f"results/smoke/figures/training_curves.{suffix}"
            for suffix in ("json", "pdf", "png", "snakemake")
        ),
    }
    cached = {hash_file(path, "md5") for path in stored.folder.glob(".dvc/cache/files/md5/*/*")}
    for run in RUNS:
        for path in (stored.folder / "results/smoke/runs" / run / "seed0").iterdir():
            assert path.name in ("checkpoints", ".running") or hash_file(path, "md5") in cached


def test_a_fresh_clone_does_nothing_and_an_edit_remakes_what_depends_on_it(
    stored: Workspace, tmp_path: Path
) -> None:
    fresh = clone(stored, tmp_path / "clone")
    assert not ran(dvc(fresh, "repro"))
    assert "Nothing to be done" in fresh.snakemake(TABLE)
    before = weights(fresh)
    old, new = weight(4.0)
    with edited(fresh.folder / "params/runs.yaml", old, new):
        output = dvc(fresh, "repro")
        assert set(ran(output)) == STAGES
        # The features are not stored: they come first.
        assert sorted(made(output)) == sorted([*("features", "features"), *REMADE])
        after = weights(fresh)
        assert {run for run in RUNS if before[run] != after[run]} == {"possam_b_ade20k"}
        assert not ran(dvc(fresh, "repro"))
        changed = json.loads(dvc(fresh, "params", "diff", "--json"))
        ((key, values),) = changed["params/runs.yaml"].items()
        assert key == "possam_b_ade20k.loss.dice_weight" and values["new"] == 4.0


def test_what_was_brought_back_does_not_pass_for_what_was_there(
    stored: Workspace,
) -> None:
    """After the checkout of another state, Snakemake knows which parameters the files are of."""
    runs = stored.folder / "params/runs.yaml"
    old, new = weight(3.0)
    before = weights(stored)
    with edited(runs, old, new):
        stored.snakemake(TABLE)
        assert weights(stored) != before
        made = weights(stored)
    dvc(stored, "checkout", "--force")
    stored.run("git", "restore", "results")
    assert weights(stored) == made, "DVC changes no result"
    assert "Nothing to be done" in stored.snakemake(TABLE)
    assert weights(stored) == before
    with edited(runs, old, new):
        assert re.search(r"train +1\n", stored.snakemake("-n", TABLE))


@pytest.mark.parametrize("link", ["symlink", "hardlink"])
def test_the_cache_is_not_written_through_links(stored: Workspace, link: str) -> None:
    cache = stored.folder / ".dvc/cache/files/md5"
    dvc(stored, "config", "--local", "cache.type", link)
    name = "runs/possam_b_ade20k/seed0/metrics.jsonl"
    try:
        dvc(stored, "checkout", "--relink", "--quiet")
        linked = stored.folder / "stored/smoke" / name
        assert linked.is_symlink() or linked.stat().st_nlink > 1
        shutil.rmtree(stored.folder / "results/smoke/runs")
        shutil.rmtree(stored.folder / ".possam")
        assert "Nothing to be done" in stored.snakemake(TABLE)
        linked = stored.folder / "results/smoke" / name
        assert not linked.is_symlink() and linked.stat().st_nlink > 1
        old, new = weight(8.0 if link == "symlink" else 6.0)
        with edited(stored.folder / "params/runs.yaml", old, new):
            assert made(stored.snakemake(TABLE)) == ["train", "evaluate", "table"]
        assert not linked.is_symlink() and linked.stat().st_nlink == 1
    finally:
        dvc(stored, "config", "--local", "--unset", "cache.type")
        restore(stored)
        dvc(stored, "checkout", "--relink", "--quiet")
    for path in cache.glob("*/*"):
        assert hash_file(path, "md5") == path.parent.name + path.name.removesuffix(".dir")


def test_metrics_and_plots_are_the_table_s(stored: Workspace) -> None:
    shown = json.loads(dvc(stored, "metrics", "diff", "--all", "--json"))[METRICS]
    table = read_json(stored.folder / METRICS)
    assert shown["PosSAM (B).ade_coco_miou"]["new"] == table["PosSAM (B)"]["ade_coco_miou"]
    assert set(table) == {
        *("PosSAM (B)", "PosSAM (B), decoder not trained"),
        "PosSAM (B), class names shuffled at test time",
    }
    dvc(stored, "plots", "show", "--out", "plots")
    page = (stored.folder / "plots/index.html").read_text()
    assert "PosSAM (B)" in page and "MaskCLIP" in page and "coco_ade_pq" in page


def kept(workspace: Workspace) -> dict[str, str]:
    """Hashes of all data, results, weights and checkpoints."""
    roots = (workspace.folder / name for name in ("data/smoke", "results/smoke"))
    files = (path for root in roots for path in root.rglob("*") if path.is_file())
    return {str(path): sha256_file(path) for path in files if "logs" not in path.parts}


def test_no_command_of_dvc_removes_a_result(finished: Workspace, tmp_path: Path) -> None:
    """Nothing is pinned, or it was and the cache is empty: DVC then removes what it manages."""
    fresh = finished.copy(tmp_path / "project")
    # Only DVC's own work is tried here, not what Snakemake makes after it.
    text = (fresh.folder / "dvc.yaml").read_text()
    (fresh.folder / "dvc.yaml").write_text(re.sub(r"snakemake .*", '"true"', text))
    fresh.commit("Without Snakemake")
    before = kept(fresh)
    assert any("checkpoints" in name for name in before)
    setting = "params/runs.yaml:+possam_b_ade20k.loss.dice_weight=4.0"
    fresh.run("dvc", "checkout", "--force", check=False)  # it fails: nothing was stored yet
    assert kept(fresh) == before
    dvc(fresh, "exp", "run", "--name", "lighter", "--set-param", setting)
    assert kept(fresh) == before
    fresh.run("git", "restore", ".")
    dvc(fresh, "repro")
    fresh.commit("Pinned")
    shutil.rmtree(fresh.folder / ".dvc/cache")
    for command in (("checkout", "--force"), ("exp", "apply", "lighter"), ("gc", "-w", "--force")):
        fresh.run("dvc", *command, check=False)
        assert kept(fresh) == before, command
    assert fresh.run("dvc", "pull", "--force", check=False).returncode != 0, "there is no remote"
    assert kept(fresh) == before


def test_an_experiment_is_run_and_kept(stored: Workspace) -> None:
    setting = "params/runs.yaml:+possam_b_ade20k.loss.dice_weight=7.0"
    output = dvc(stored, "exp", "run", "--name", "heavier", "--set-param", setting)
    assert set(ran(output)) == STAGES
    assert sorted(made(output)) == REMADE
    shown = json.loads(dvc(stored, "params", "diff", "main", "heavier", "--json"))
    (key,) = shown["params/runs.yaml"]
    assert key == "possam_b_ade20k.loss.dice_weight"
    assert METRICS in json.loads(
        dvc(stored, "metrics", "diff", "main", "heavier", "--all", "--json")
    )
