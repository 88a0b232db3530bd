"""A new pooling is a class and one line of the registry; names that are not there are refused."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model import registry
from possam.model.options import ModelOptions
from possam.model.pooling import RegionPooling
from possam.model.registry import DECODERS, ENSEMBLES, POOLINGS, PYRAMIDS, load_part
from possam.runtime.errors import InputError
from tests.support.model_fakes import (
    SMALL,
    STAGES,
    TWO_WAY,
    inference_options,
    model_options,
    random_text,
    small_possam,
)


class SumPooling(RegionPooling):
    """What a researcher would write: both kinds of features projected and added."""

    def __init__(
        self, options: ModelOptions, *, region_channels: int, clip_channels: int, embed_dim: int
    ) -> None:
        super().__init__()
        self.region = nn.Linear(region_channels, embed_dim)
        self.clip = nn.Linear(clip_channels, embed_dim)

    def forward(self, region_tokens: Tensor, clip_tokens: Tensor) -> Tensor:
        return F.normalize(self.region(region_tokens) + self.clip(clip_tokens), dim=-1)


def test_a_new_pooling_is_a_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.POOLINGS, "sum", "tests.model.test_registry:SumPooling")
    assert model_options(pooling="sum").modules == (
        "possam.model.pyramid",
        "possam.model.region_decoder",
        "tests.model.test_registry",
    )
    model = small_possam(pooling="sum")
    assert type(model.pooling).__name__ == "SumPooling"
    generator = torch.Generator().manual_seed(0)
    sam = torch.randn(2, SMALL["backbone_channels"][0], 4, 6, generator=generator)
    clip = torch.randn(2, SMALL["clip_channels"], 2, 3, generator=generator)
    output = model((sam,), clip, all_layers=True)
    embeddings = torch.stack([layer.embeddings for layer in output.layers])
    model.class_logits(embeddings, random_text(classes=3)).logsumexp(-1).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.pooling.named_parameters()}
    assert set(gradients) == {"region.weight", "region.bias", "clip.weight", "clip.bias"}
    assert all(grad is not None and grad.any() for grad in gradients.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "sum"}, "unknown 'sum'; valid choices: ldp, cross_attention, region, clip"),
        ({"decoder": "detr"}, "unknown 'detr'; valid choices: mask2former, two_way"),
        ({"pyramid": "stages"}, "pyramid 'stages' .*valid choices: fpn, resample"),
        ({"pyramid": None}, "pyramid None .*valid choices: fpn, resample"),
        ({**TWO_WAY, "pyramid": "fpn"}, "pyramid 'fpn' .*valid choices: null"),
        ({**STAGES, "pyramid": "fpn"}, "pyramid 'fpn' .*valid choices: stages"),
    ],
)
def test_an_unknown_part_is_refused_with_the_valid_choices(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        model_options(**changes)


def test_an_unknown_ensemble_is_refused_with_the_valid_choices() -> None:
    with pytest.raises(ValidationError, match="'mean'; valid choices: mase, geometric, ldp, clip"):
        inference_options(ensemble="mean")
    with pytest.raises(InputError, match="'mean'; valid choices: mase, geometric"):
        load_part(ENSEMBLES, "mean")


def test_every_entry_is_there() -> None:
    for kinds in (*PYRAMIDS.values(), DECODERS, POOLINGS, ENSEMBLES):
        for name in kinds:
            assert callable(load_part(kinds, name))


def test_only_the_chosen_parts_count_as_code() -> None:
    assert model_options(**TWO_WAY).modules == (
        "possam.model.baselines.two_way",
        "possam.model.pooling",
    )
    assert inference_options().modules == ("possam.model.ensemble",)
