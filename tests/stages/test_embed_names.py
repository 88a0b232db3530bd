"""The scale's CLIP names the file of its text embeddings: other weights, other file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.runtime.files import write_json
from possam.stages.models import embed_names


class Clip:
    """Embeds every sentence by its length, on the CPU."""

    image_mean = torch.zeros(1)

    def __init__(self) -> None:
        self.calls = 0

    def encode_text(self, texts: list[str]) -> Tensor:
        self.calls += 1
        angles = torch.tensor([float(len(text)) for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=-1)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(Project("mini"), root=tmp_path)
    clip = layout.project.scale.towers.clip
    for asset in (clip.asset, *clip.files):
        assert asset is not None
        write_json(layout.asset_record(asset), {"file": "x", "sha256": "0" * 64})
    return layout


def _embed(layout: Layout, clip: Any) -> None:
    embed_names(layout, clip, [("cat",), ("sky",)], templates=layout.project.scale.templates)


def test_embedded_once_for_each_clip(layout: Layout) -> None:
    clip, own = Clip(), layout.project.scale.towers.clip
    _embed(layout, clip)
    _embed(layout, clip)
    assert clip.calls == 1
    for calls, asset in enumerate((own.asset, *own.files), start=2):
        assert asset is not None
        write_json(layout.asset_record(asset), {"file": "x", "sha256": f"{calls}" * 64})
        _embed(layout, clip)
        _embed(layout, clip)
        assert clip.calls == calls
    assert len(list(layout.text.iterdir())) == clip.calls


def test_weights_that_were_not_fetched_are_named(layout: Layout) -> None:
    asset = layout.project.scale.towers.clip.asset
    assert asset is not None
    layout.asset_record(asset).unlink()
    with pytest.raises(InputError, match=asset):
        _embed(layout, Clip())
    assert not layout.text.exists()
