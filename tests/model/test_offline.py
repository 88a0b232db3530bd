"""Frozen towers come from files alone: no network, no silent random weights, no code unpickled."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from possam.model.encoders.clip import build_open_clip, load_clip
from possam.model.encoders.sam import build_sam, find_architecture, load_sam
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.models import load_clip_tower, load_sam_tower

PARAMS = Path(__file__).resolve().parents[2] / "params"
PAPER = "convnext_large_d_320"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to reach the network; each is refused. No hub's offline switch is set."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    made: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        made.append(arguments)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return made


def test_the_fixture_sees_connections(attempts: list[Any]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.org", 80))
    assert attempts


def test_missing_weights_are_an_error_and_nothing_is_fetched(
    attempts: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "possam.model.encoders.clip.build_open_clip",
        lambda config: pytest.fail("built without weights"),
    )
    missing = tmp_path / "open_clip_pytorch_model.bin"
    with pytest.raises(InputError, match=r"open_clip_pytorch_model\.bin: no such file"):
        load_clip(config=PAPER, checkpoint=missing)
    with pytest.raises(InputError, match="random_init=True"):
        load_clip(config=PAPER, checkpoint=None)
    with pytest.raises(InputError, match=r"sam_vit_h_4b8939\.pth: no such file"):
        load_sam(tmp_path / "sam_vit_h_4b8939.pth", architecture="vit_h")
    monkeypatch.chdir(tmp_path)
    layout = Layout(Project("paper", folder=PARAMS))
    with pytest.raises(InputError, match="possam download clip_convnext_large_d_320 --scale paper"):
        load_clip_tower(layout)
    with pytest.raises(InputError, match="possam download sam_vit_h --scale paper"):
        load_sam_tower(layout, "h")
    assert attempts == []


def test_building_asks_no_hub(attempts: list[Any]) -> None:
    with torch.device("meta"):
        model, tokenizer, size = build_open_clip(PAPER)
    assert (size, tokenizer(["a cat"]).shape) == (320, (1, 77))
    assert sum(p.numel() for p in model.parameters()) == 351_772_609
    with pytest.raises(InputError, match="built-in"):
        build_open_clip("hf-hub:laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup")
    assert attempts == []


class _Evil:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pth", "bin", "pt"])
def test_no_code_is_unpickled(tmp_path: Path, suffix: str) -> None:
    path, made = tmp_path / f"weights.{suffix}", tmp_path / "made"
    torch.save({"weight": _Evil(made)}, path)
    with pytest.raises(InputError, match=rf"weights\.{suffix}: not a readable"):
        load_sam(path, architecture="synthetic_b")
    shipped = PARAMS.parent / "data" / "towers" / "synthetic_clip.json"
    with pytest.raises(InputError, match=rf"weights\.{suffix}: not a readable"):
        load_clip(config=shipped, checkpoint=path)
    assert not made.exists()
    torch.load(path, weights_only=False)  # the file is what it should be
    assert made.is_dir()


def test_a_state_dict_that_lacks_one_tensor_is_refused(tmp_path: Path) -> None:
    """Nothing is left at its random initial value."""
    state = build_sam(find_architecture("synthetic_b")).state_dict()
    for key in ("image_encoder.neck.1.bias", "prompt_encoder.no_mask_embed.weight"):
        path = tmp_path / "sam.pth"
        torch.save({name: value for name, value in state.items() if name != key}, path)
        with pytest.raises(InputError, match=key.replace(".", r"\.")):
            load_sam(path, architecture="synthetic_b")
