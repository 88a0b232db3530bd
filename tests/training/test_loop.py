"""The loop: exact resume after SIGKILL, skipped steps, metrics, refusals."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, TrainingError
from possam.runtime.files import hash_json, sha256_file
from possam.training import run as one_run
from possam.training.checkpoint import (
    WeightsMetadata,
    load_checkpoint,
    load_trained,
    read_metadata,
)
from possam.training.checkpoint_paths import checkpoints
from possam.training.distributed import resolve_device, single_process
from possam.training.loop import EndedEarlyError, train_run
from possam.training.losses import TERMS
from possam.training.metrics import TIME_FIELDS
from possam.training.options import SAVE, SAVE_AND_END
from possam.training.run_files import RunFiles
from possam.training.targets import Batch
from possam.training.trainer import Trainer
from tests.support.training_fakes import (
    FROZEN,
    DropoutPosSAM,
    FakeSource,
    loss_params,
    possam,
    text_embeddings,
    training_params,
    weights_metadata,
)

SUPERSEDED, ACCEPTED = "superseded", "accepted_code"
OTHER_RUN = weights_metadata(identity={"run": "b"})


def train(directory: Path, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {
        "model": possam(),
        "source": FakeSource(),
        "text": text_embeddings(),
        "training": training_params(),
        "loss": loss_params(),
        "seed": 1,
        "metadata": weights_metadata(),
        "process": single_process("cpu"),
    }
    files = RunFiles(directory, superseded=directory / SUPERSEDED)
    return train_run(files=files, **{**options, **changes})


def trainer_of(model: Any, **changes: Any) -> Trainer:
    return Trainer(
        model=model,
        text=text_embeddings(),
        training=training_params(**changes),
        loss=loss_params(),
        seed=0,
        process=single_process("cpu"),
    )


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "tests/support/crash_run.py", tmp_path_factory.mktemp("runs")],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_killed_runs_end_as_if_they_had_not_been_killed(crashes: dict[str, Any]) -> None:
    reference = crashes["reference"]
    assert crashes["code"] == 0
    # identity, three checkpoints of two renames, weights twice, summary; a run may end before the
    # random moment at which it should be killed
    assert sum(len(run["codes"]) > 1 for run in crashes["runs"]) >= 10
    for run in crashes["runs"]:
        assert run["codes"][-1] == 0
        assert set(run["codes"][:-1]) <= {-signal.SIGKILL}
        assert run["weights"] == reference["weights"]
        assert run["metrics"] == reference["metrics"]
        assert run["files"] == reference["files"]


def test_the_run_that_was_not_killed_logged_its_skipped_step(crashes: dict[str, Any]) -> None:
    assert [line["step"] for line in crashes["reference"]["metrics"]] == [3, 6]
    assert [line["skipped"] for line in crashes["reference"]["metrics"]] == [1, 1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("finished") / "run"
    train(directory)
    yield directory


def test_metrics_lines(finished: Path) -> None:
    lines = metrics_of(finished)
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert {"loss", "grad_norm", "lr", "skipped", *TERMS, *TIME_FIELDS} <= set(line)
        assert {f"{name}_last" for name in TERMS} <= set(line)
        assert all(math.isfinite(value) for value in line.values())
        weights = {"class": 2, "bce": 5, "dice": 5, "iou": 1}
        total = sum(weight * line[name] for name, weight in weights.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)
        assert all(0 <= line[f"{name}_last"] <= line[name] for name in TERMS)
    assert lines[-1]["eta_s"] == 0 and lines[-1]["lr"] == pytest.approx(1e-5)


def test_second_call_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in finished.rglob("*")}

    before, model = state(), possam()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    summary = train(finished, model=model)
    assert state() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert summary == json.loads((finished / "training.json").read_text())
    assert summary["weights_sha256"] == sha256_file(finished / "weights.safetensors")
    assert "nothing to do" in capsys.readouterr().out


def test_trained_weights_are_those_of_the_last_step(finished: Path) -> None:
    trained = load_trained(finished / "weights.safetensors", frozen=FROZEN)
    newest = checkpoints(finished / "checkpoints")[0]
    assert newest.name == "step_000000006"
    checkpoint = load_checkpoint(newest, identities={hash_json({"run": "a"})})
    for name, value in trained.state_dict().items():
        assert torch.equal(value, checkpoint.weights[name])
    start = possam().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in trained.state_dict().items())


def test_another_identity_starts_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, training=training_params(iterations=2))
    assert "starts over" not in capsys.readouterr().out
    train(tmp_path, training=training_params(iterations=4), metadata=OTHER_RUN)
    assert "holds another run" in capsys.readouterr().out
    assert [line["step"] for line in metrics_of(tmp_path)] == [3, 4]
    newest = checkpoints(tmp_path / "checkpoints")[0]
    assert newest.name == "step_000000004"
    assert json.loads((tmp_path / "identity.json").read_text())["identity"] == {"run": "b"}


class Killed(Exception):
    pass


class Interrupted(FakeSource):
    """Ends the training in step 3; the last checkpoint is of step 2."""

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step, batch in enumerate(super().batches(start, stop), start=start):
            if step == 3:
                raise Killed
            yield batch


def of_code(version: int) -> WeightsMetadata:
    return weights_metadata(identity={"run": "a", "code": str(version) * 64})


def accept(directory: Path, version: int) -> None:
    files = RunFiles(directory, superseded=directory / SUPERSEDED)
    files.take_up(of_code(version).identity, accept_code=True)


def test_a_run_of_accepted_code_ends_as_if_it_had_not_been_interrupted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two changes of the code, both without effect on any number."""
    train(tmp_path / "whole", metadata=of_code(3))
    run = tmp_path / "run"
    for version in (1, 2):
        with pytest.raises(Killed):
            train(run, source=Interrupted(), metadata=of_code(version))
        accept(run, version + 1)
    train(run, metadata=of_code(3))
    printed = capsys.readouterr().out
    assert printed.count("step_000000002: going on after step 2") == 2 and "another" not in printed

    trained, whole = (load_file(path / "weights.safetensors") for path in (run, tmp_path / "whole"))
    assert trained.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in trained.items())
    values = read_metadata(run / "weights.safetensors")
    assert values["identity"] == hash_json(of_code(3).identity)
    changes = [
        (c["steps"], c["before"]["code"][0], c["after"]["code"][0]) for c in values[ACCEPTED]
    ]
    assert changes == [(2, "1", "2"), (2, "2", "3")]
    assert read_metadata(tmp_path / "whole" / "weights.safetensors")[ACCEPTED] == []


def test_a_finished_run_is_accepted_without_a_step(tmp_path: Path) -> None:
    train(tmp_path, metadata=of_code(1))
    before = load_file(tmp_path / "weights.safetensors")
    accept(tmp_path, 2)
    summary = train(tmp_path, metadata=of_code(2), source=Interrupted())
    path = tmp_path / "weights.safetensors"
    assert all(torch.equal(value, before[name]) for name, value in load_file(path).items())
    assert summary["identity"] == hash_json(of_code(2).identity) == read_metadata(path)["identity"]
    assert summary["weights_sha256"] == sha256_file(path)
    assert [change["steps"] for change in read_metadata(path)[ACCEPTED]] == [6]
    # as after a kill between the weights and the summary
    (tmp_path / "training.json").write_text(
        json.dumps({**summary, "identity": "old", "weights_sha256": "old"})
    )
    assert train(tmp_path, metadata=of_code(2), source=Interrupted()) == summary


def test_without_acceptance_the_old_run_is_kept_and_training_starts_over(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tmp_path, source=Interrupted(), metadata=of_code(1))
    train(tmp_path, metadata=of_code(2), training=training_params(iterations=1))
    (kept,) = (tmp_path / SUPERSEDED).iterdir()
    assert [path.name for path in (kept / "checkpoints").iterdir()] == ["step_000000002"]
    whole = train(tmp_path / "whole", metadata=of_code(1))
    assert train(tmp_path, metadata=of_code(1))["weights_sha256"] == whole["weights_sha256"]


def test_a_checkpoint_that_a_killed_call_left_is_removed(tmp_path: Path) -> None:
    train(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step_000000004", folder / "step_000000002")
    train(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"step_000000004", "step_000000006"}


def test_deleted_weights_and_metrics_come_back_from_the_checkpoint(tmp_path: Path) -> None:
    first = train(tmp_path)
    lines = metrics_of(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    second = train(tmp_path)
    assert second["weights_sha256"] == first["weights_sha256"]
    assert metrics_of(tmp_path) == lines


def test_equal_seeds_give_equal_weights_and_others_do_not(tmp_path: Path) -> None:
    short = training_params(iterations=2)
    hashes = [
        train(tmp_path / str(number), training=short, seed=seed)["weights_sha256"]
        for number, seed in enumerate([1, 1, 2])
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    trainer = trainer_of(possam())
    bad = next(FakeSource(poison=frozenset({0})).batches(0, 1))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert trainer.step(0, bad)[0] is False
    after = trainer.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert trainer.step(1, next(FakeSource().batches(1, 2)))[0] is True
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_many_non_finite_steps_in_a_row_save_the_state_and_stop_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "MAX_CONSECUTIVE_SKIPS", 3)
    source = FakeSource(poison=frozenset(range(1, 6)))
    with pytest.raises(TrainingError, match=r"step 3: .* 3 steps in a row.*step_000000004"):
        train(tmp_path, source=source)
    assert capsys.readouterr().out.count("skipped") == 3
    newest = checkpoints(tmp_path / "checkpoints")[0]
    saved = load_checkpoint(newest, identities={hash_json({"run": "a"})})
    assert saved.step == 4 and saved.counters["skipped"] == 3
    assert all(torch.isfinite(value).all() for value in saved.weights.values())
    assert not (tmp_path / "weights.safetensors").exists()


def test_scattered_non_finite_steps_do_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_run, "MAX_CONSECUTIVE_SKIPS", 2)
    source = FakeSource(poison=frozenset({0, 2, 4}))
    assert train(tmp_path, source=source)["skipped"] == 3


def curve(directory: Path) -> list[dict[str, Any]]:
    lines = metrics_of(directory)
    return [{key: value for key, value in x.items() if key not in TIME_FIELDS} for x in lines]


def test_a_checkpoint_is_written_when_it_is_asked_for(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rarely = training_params(checkpoint_every=100)
    with pytest.raises(EndedEarlyError, match="after step 3 of 6"):
        train(tmp_path, training=rarely, asked=iter([0, 0, SAVE_AND_END]).__next__)
    assert not (tmp_path / "weights.safetensors").exists()
    capsys.readouterr()
    train(tmp_path, training=rarely, asked=iter([SAVE, 0, SAVE_AND_END]).__next__)
    assert "going on after step 3\n" in capsys.readouterr().out
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step_000000004", "step_000000006"]
    # Neither the weights nor the curve show it; the order after the last step changes nothing.
    weights = [sha256_file(run / "weights.safetensors") for run in (tmp_path, finished)]
    assert weights[0] == weights[1] and curve(tmp_path) == curve(finished)


def test_each_step_draws_its_own_points_and_dropout() -> None:
    model, dropped = DropoutPosSAM(), []
    model.dropout.register_forward_hook(lambda *call: dropped.append(call[-1]))
    trainer = trainer_of(model)
    batches = next(FakeSource().batches(0, 1))
    counts = [len(target.labels) for target in batches[0].targets]
    model.eval()  # without dropout only the points differ
    totals = [trainer.losses(step, batches[0], counts).total.item() for step in (0, 1, 0)]
    assert totals[0] == totals[2] != totals[1]

    model.train()
    dropped.clear()
    before = torch.get_rng_state()
    for step in (0, 1, 0):
        trainer.step(step, batches)
    assert torch.equal(dropped[0], dropped[2]) and not torch.equal(dropped[0], dropped[1])
    assert torch.equal(before, torch.get_rng_state())


def test_a_window_without_a_finite_step_has_no_means(tmp_path: Path) -> None:
    train(tmp_path, source=FakeSource(poison=frozenset({0, 1, 2})))
    assert [line["loss"] is None for line in metrics_of(tmp_path)] == [True, False]


def test_training_lowers_the_loss() -> None:
    trainer = trainer_of(possam(), learning_rate=1e-2, warmup=1, milestones=(1000,))
    batches = next(FakeSource().batches(0, 1))
    values = [trainer.step(step, batches)[1][0] for step in range(40)]
    assert sum(values[-5:]) < 0.7 * sum(values[:5])


def test_bf16_keeps_float32_weights(tmp_path: Path) -> None:
    train(tmp_path, training=training_params(iterations=2, precision="bf16"))
    trained = load_trained(tmp_path / "weights.safetensors", frozen=FROZEN)
    assert {value.dtype for value in trained.state_dict().values()} == {torch.float32}


def test_a_model_without_iou_head_trains(tmp_path: Path) -> None:
    train(tmp_path, model=possam(iou_head=False), training=training_params(iterations=1))
    assert metrics_of(tmp_path)[0]["iou"] == 0


def test_source_and_vocabulary_must_have_equally_many_classes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="3 classes, but the class names 4"):
        train(tmp_path, text=text_embeddings(4))


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(InputError, match="no CUDA device"):
        resolve_device("cuda")
    with pytest.raises(InputError, match="not supported"):
        resolve_device("mps")
    with pytest.raises(InputError, match="not a device"):
        resolve_device("quantum")


class Initialise:
    """Sets every weight to 0.5, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, model: PosSAM) -> None:
        self.calls += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)


def test_a_run_is_initialised_once_and_before_its_first_step(tmp_path: Path) -> None:
    initialise = Initialise()
    still = training_params(learning_rate=1e-12)  # the weights stay where they start
    train(tmp_path, training=still, initialise=initialise)
    trained = load_trained(tmp_path / "weights.safetensors", frozen=FROZEN)
    for parameter in trained.parameters():
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.5), rtol=0, atol=1e-6)
    train(tmp_path, training=still, initialise=initialise)  # finished
    (tmp_path / "weights.safetensors").unlink()
    train(tmp_path, training=still, initialise=initialise)  # goes on after the last checkpoint
    assert initialise.calls == 1
    train(tmp_path, training=still, initialise=initialise, metadata=OTHER_RUN)
    assert initialise.calls == 2


def test_a_killed_run_goes_on_from_its_checkpoint_and_not_from_the_start(tmp_path: Path) -> None:
    initialise = Initialise()
    with pytest.raises(Killed):
        train(tmp_path / "killed", source=Interrupted(), initialise=initialise)
    resumed = train(tmp_path / "killed", initialise=initialise)
    assert initialise.calls == 1
    whole = train(tmp_path / "whole", initialise=initialise)
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    assert train(tmp_path / "random")["weights_sha256"] != whole["weights_sha256"]


def test_a_run_that_cannot_be_initialised_writes_nothing(tmp_path: Path) -> None:
    def broken(model: PosSAM) -> None:
        raise InputError("checkpoint: truncated")

    train(tmp_path, training=training_params(iterations=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match="truncated"):
        train(tmp_path, initialise=broken, metadata=OTHER_RUN)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
