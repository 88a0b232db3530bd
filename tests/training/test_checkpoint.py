"""Checkpoints and trained weights: rotation, damage, refusal of other towers."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.files import remove_leftovers
from possam.training.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    load_checkpoint,
    load_trained,
    newest_intact,
    read_metadata,
    rotate,
    save_checkpoint,
    save_trained,
)
from possam.training.checkpoint_paths import checkpoints, finished_steps
from possam.training.schedule import build_optimizer
from tests.support.training_fakes import FROZEN, MODEL, possam, training_params, weights_metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 1 to 3 of a run, of which two are kept."""
    model = possam()
    optimizer = build_optimizer(model, training_params())
    metrics = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()
        metrics.write_text(f"{step}\n")
        save_checkpoint(
            tmp_path / "checkpoints",
            step=step,
            identity_hash="run",
            model=model,
            optimizer=optimizer,
            counters={"skipped": step},
            metrics=metrics,
        )
    return tmp_path / "checkpoints"


def newest(folder: Path) -> Checkpoint | None:
    return newest_intact(folder, identities={"run"})


def test_two_checkpoints_are_kept(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000002", "step_000000003"]
    assert [path.name[-1] for path in checkpoints(folder)] == ["3", "2"]
    assert checkpoints(folder / "absent") == []
    assert (finished_steps(folder), finished_steps(folder / "absent")) == (3, 0)
    assert newest(folder / "absent") is None


def test_a_checkpoint_whose_removal_was_interrupted_is_no_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def half(path: Path) -> None:
        (path / "state.pt").unlink()
        raise Killed

    shutil.copytree(folder / "step_000000002", folder / "step_000000001")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("possam.training.checkpoint.shutil.rmtree", half)
        rotate(folder)
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000002", "step_000000003"]


def test_a_needed_checkpoint_is_never_removed(folder: Path) -> None:
    for step in (0, 1):
        shutil.copytree(folder / "step_000000002", folder / f"step_00000000{step}")
    rotate(folder, needed=folder / "step_000000001")
    assert [path.name[-1] for path in sorted(folder.iterdir())] == ["1", "2", "3"]
    rotate(folder, needed=folder / "step_000000003")
    assert [path.name[-1] for path in sorted(folder.iterdir())] == ["2", "3"]


def test_a_checkpoint_gives_back_what_was_saved(folder: Path) -> None:
    found = newest(folder)
    assert found is not None and found.step == 3 and found.counters == {"skipped": 3}
    assert found.metrics.read_text() == "3\n"
    model = possam()
    optimizer = build_optimizer(model, training_params())
    model.load_state_dict(found.weights)
    optimizer.load_state_dict(found.optimizer)
    steps = {state["step"].item() for state in optimizer.state_dict()["state"].values()}
    assert steps == {3.0}


@pytest.mark.parametrize("file", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_the_checkpoint_before_a_damaged_one_is_read_and_this_is_printed(
    folder: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "step_000000003" / file
    whole = path.read_bytes()
    path.unlink()
    if damage == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    found = newest(folder)
    assert found is not None and found.step == 2
    printed = capsys.readouterr().out
    assert str(path) in printed and "trying the checkpoint before it" in printed


def test_no_readable_checkpoint_is_an_error(folder: Path) -> None:
    for path in folder.glob("*/state.pt"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"no checkpoint can be read.*remove this folder"):
        newest(folder)


def test_a_checkpoint_of_another_run_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="is of run run, not of run other"):
        load_checkpoint(folder / "step_000000003", identities={"other"})


def test_leftovers_are_removed_and_nothing_else(folder: Path) -> None:
    (folder / ".step_000000004.12345678.tmp").mkdir()
    (folder / ".metrics.jsonl.tmp").write_text("")
    remove_leftovers(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000002", "step_000000003"]


def save(path: Path, model: PosSAM | None = None, **changes: Any) -> Path:
    save_trained(path, model or possam(), weights_metadata(**changes), step=7)
    return path


def test_trained_weights_round_trip(tmp_path: Path) -> None:
    model = possam()
    loaded = load_trained(save(tmp_path / "w.safetensors", model=model), frozen=FROZEN)
    assert not loaded.training
    expected = model.state_dict()
    assert set(expected) == {name for name, _ in model.named_parameters()}  # no buffers
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, expected[name])
    features = (torch.randn(1, 4, 4, 4),), torch.randn(1, 6, 4, 4)
    with torch.no_grad():
        found = loaded(*features).layers[-1].mask_logits
        assert torch.equal(found, model.eval()(*features).layers[-1].mask_logits)


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    files = {save(tmp_path / f"{number}.safetensors").read_bytes() for number in range(8)}
    assert len(files) == 1


def test_metadata(tmp_path: Path) -> None:
    values = read_metadata(save(tmp_path / "w.safetensors"))
    assert (
        values["frozen"] == FROZEN
        and values["model"] == json.loads(json.dumps(MODEL))
        and values["step"] == 7
    )
    assert values["vocabulary"] == [["cat"], ["dog", "puppy"]]
    assert values["format"] == "possam-weights-3" and len(values["identity"]) == 64


@pytest.mark.parametrize("frozen", [{**FROZEN, "sam": "b" * 8}, {"clip": FROZEN["clip"]}])
def test_other_towers_are_refused_by_name(tmp_path: Path, frozen: dict[str, str]) -> None:
    path = save(tmp_path / "w.safetensors")
    with pytest.raises(WrongVariantError, match=r"sam aaaaaaaa.*sam given is (bbbbbbbb|None)"):
        load_trained(path, frozen=frozen)


def test_weights_of_a_model_without_sam(tmp_path: Path) -> None:
    frozen = {"clip": FROZEN["clip"]}
    changes = {"backbone": "clip", "backbone_channels": [4, 6, 6, 6], "pyramid": "stages"}
    model = possam(**changes)
    path = tmp_path / "w.safetensors"
    save(path, model=model, model_kwargs={**MODEL, **changes}, frozen=frozen)
    loaded = load_trained(path, frozen=frozen).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    with pytest.raises(WrongVariantError, match=r"trained over sam None, but .* given is aaaaaaaa"):
        load_trained(path, frozen=FROZEN)


def test_files_that_are_not_trained_weights_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.safetensors")
    whole = path.read_bytes()
    with pytest.raises(InputError, match="no such file"):
        load_trained(tmp_path / "absent", frozen=FROZEN)
    for size in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="truncated"):
            load_trained(path, frozen=FROZEN)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not trained PosSAM weights"):
        load_trained(path, frozen=FROZEN)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "w.safetensors")
    tensors, metadata = load_file(path), read_metadata(path)
    tensors.pop("void_embed")
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(metadata)})
    with pytest.raises(InputError, match=r"not those of the model.*void_embed"):
        load_trained(path, frozen=FROZEN)
