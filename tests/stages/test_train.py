"""What ``possam train`` finds out before it loads anything: is the run there, and of which code."""

from pathlib import Path
from typing import Any

import pytest

from possam.datasets import format
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, read_json, sha256_file, write_json
from possam.stages import train
from possam.stages.train import Training, only_one
from possam.training.run_files import RunFiles

PARAMS = Path(__file__).resolve().parents[2] / "params"
MANIFEST: dict[str, Any] = {"content": "d", "vocabulary": [["cat"], ["dog", "puppy"]]}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The smoke scale with its towers' records; the data set is invented."""
    (tmp_path / "params").symlink_to(PARAMS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(format, "read_manifest", lambda folder: MANIFEST)
    code(monkeypatch, "1")
    project = Project("smoke")
    for asset in (project.scale.towers.clip.asset, project.scale.towers.sam["b"].asset):
        write_json(f"data/smoke/assets/{asset}.record.json", {"sha256": "a" * 64})
    return project


def code(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Other code, for every device."""
    monkeypatch.setattr(
        train, "code_identity", lambda modules, *, package, device: f"{version} on {device}"
    )


def training(project: Project) -> Training:
    return Training(project, "possam_b_coco", seed=None)


def finish(files: RunFiles, identity: dict[str, Any]) -> None:
    """As a finished training leaves its folder, but for ``run.json`` and the provenance."""
    from possam.training.checkpoint import WeightsMetadata, save_trained
    from tests.support.training_fakes import FROZEN, MODEL, possam

    files.prepare(identity)
    metadata = WeightsMetadata(
        model_kwargs=MODEL, identity=identity, frozen=FROZEN, vocabulary=MANIFEST["vocabulary"]
    )
    save_trained(files.weights, possam(), metadata, step=8)
    digest, own = sha256_file(files.weights), hash_json(identity)
    summary = {"identity": own, "steps": 8, "weights_sha256": digest, "trainable_parameters": 3}
    write_json(files.summary, summary)


def test_a_run_that_was_not_begun_is_left_alone(project: Project) -> None:
    found = training(project)
    assert not found.settle(found.on("cpu"), accept_code=False)
    assert not found.directory.exists()
    with pytest.raises(InputError, match="no checkpoint and no weights"):
        with only_one(found.directory):
            found.settle(found.on("cpu"), accept_code=True)
    assert not found.directory.exists(), "nothing is left behind"


def test_a_finished_run_is_described_again_and_keeps_its_provenance(project: Project) -> None:
    found = training(project)
    identity = found.on("cuda")
    finish(found.files, identity)
    assert found.files.device_of(found.on, "cpu") == "cuda"
    assert found.settle(identity, accept_code=False)
    run = read_json(found.directory / "run.json")
    assert (run["identity"], run["device"]) == (hash_json(identity), "cuda")
    assert (run["code"], run["accepted_code"]) == ("1 on cuda", [])
    assert run["vocabulary"] == [["cat"], ["dog", "puppy"]] and run["summary"]["steps"] == 8
    provenance = found.directory / "provenance.json"
    write_json(provenance, {"wall_time_s": 5000})
    (found.directory / "run.json").unlink()  # as Snakemake does
    assert training(project).settle(identity, accept_code=False)
    assert read_json(found.directory / "run.json") == run
    assert read_json(provenance) == {"wall_time_s": 5000}, "of the call that trained"


def test_a_finished_run_of_other_code_is_accepted_and_everything_says_so(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = training(project)
    finish(found.files, found.on("cuda"))
    write_json(found.directory / "provenance.json", {"wall_time_s": 5000})
    code(monkeypatch, "2")
    found = training(project)
    device = found.files.device_of(found.on, "cpu", accept_code=True)
    assert device == "cuda", "no step is computed here"
    assert not found.settle(found.on(device), accept_code=False)
    assert found.settle(found.on(device), accept_code=True)
    run = read_json(found.directory / "run.json")
    (change,) = run["accepted_code"]
    assert change["steps"] == 8
    assert [change[when]["code"] for when in ("before", "after")] == ["1 on cuda", "2 on cuda"]
    assert run["identity"] == change["after"]["identity"] == hash_json(found.on("cuda"))
    assert run["weights_sha256"] == sha256_file(found.files.weights)
    provenance = read_json(found.directory / "provenance.json")
    assert provenance == {"wall_time_s": 5000, "accepted_code": [change]}


def test_a_run_that_was_set_aside_is_finished_once_it_is_taken_back(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = training(project)
    finish(found.files, found.on("cpu"))
    code(monkeypatch, "2")
    other = training(project)
    other.files.prepare(other.on("cpu"))
    code(monkeypatch, "1")
    again = training(project)
    assert again.settle(again.on("cpu"), accept_code=False)
    assert read_json(found.directory / "run.json")["code"] == "1 on cpu"
    assert not list(again.files.others())
