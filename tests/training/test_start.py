"""A training that begins with another run's weights has exactly these weights."""

from pathlib import Path

import pytest
import torch

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.files import sha256_file
from possam.training.checkpoint import WeightsMetadata, save_trained
from possam.training.start import start_from_run
from tests.support.model_fakes import SMALL, small_possam

FROZEN = {"sam": "1" * 64, "clip": "2" * 64}


def trained(path: Path) -> PosSAM:
    """A model of other weights than ``small_possam``'s, and its file."""
    model = small_possam(seed=8)
    metadata = WeightsMetadata(
        model_kwargs={name: value for name, value in SMALL.items() if name != "seed"},
        identity={"run": "before"},
        frozen=FROZEN,
        vocabulary=[["dog"]],
    )
    save_trained(path, model, metadata, step=7)
    return model


def test_all_weights_are_taken_over_exactly(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    expected, model = trained(path).state_dict(), small_possam()
    assert any(not torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    start_from_run(model, path, sha256=sha256_file(path), frozen=FROZEN)
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(
    ("changes", "frozen", "sha256", "error", "message"),
    [
        ({}, {**FROZEN, "sam": "3" * 64}, None, WrongVariantError, "trained over sam"),
        ({}, FROZEN, "0" * 64, InputError, "not the weights of its run.json"),
        ({"queries": 8}, FROZEN, None, WrongVariantError, "other options: 2 tensors differ"),
        ({"iou_head": False}, FROZEN, None, WrongVariantError, "first iou_head.0.bias"),
    ],
)
def test_other_weights_are_refused_and_nothing_changes(
    changes: dict,
    frozen: dict[str, str],
    sha256: str | None,
    error: type[Exception],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "weights.safetensors"
    trained(path)
    model = small_possam(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        start_from_run(model, path, sha256=sha256 or sha256_file(path), frozen=frozen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
