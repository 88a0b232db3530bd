"""Activation checkpointing and frozen towers in bfloat16 change no number."""

from typing import Any

import pytest
import torch
from torch import nn

from possam.model.pixel_decoder import DeformableAttention
from possam.training.memory import checkpoint_activations, hold_in_bfloat16
from tests.support.training_fakes import FakeSource, possam
from tests.training.test_loop import trainer_of

TWO_WAY = {"decoder": "two_way", "decoder_layers": 2, "pyramid": None, "pixel_encoder_layers": 0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [{}, {**TWO_WAY, "hidden_dim": 16}])
def test_checkpointing_changes_no_bit_of_a_step(precision: str, changes: dict[str, Any]) -> None:
    batches = next(FakeSource().batches(0, 1))
    results = []
    for switch in (False, True):
        trainer = trainer_of(
            possam(**changes), precision=precision, activation_checkpointing=switch
        )
        good, values = trainer.step(0, batches)
        assert good
        gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
        results.append((values, gradients, trainer.model.state_dict()))
    (values, gradients, weights), (other_values, other_gradients, other_weights) = results
    assert values == other_values
    assert list(gradients) == list(other_gradients) and list(weights) == list(other_weights)
    for name, gradient in gradients.items():
        assert gradient is not None and torch.equal(gradient, other_gradients[name])
        assert torch.equal(weights[name], other_weights[name])


def test_checkpointed_layers_compute_again_with_the_same_dropout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = possam(decoder_layers=2, pixel_encoder_layers=2)
    layer = model.decoder.pixel_decoder.layers[0]
    dropped = []
    layer.ffn.fc1 = nn.Sequential(layer.ffn.fc1, nn.Dropout(0.5))
    layer.ffn.fc1.register_forward_hook(lambda *call: dropped.append(call[-1]))
    calls = []
    forward = DeformableAttention.forward

    def counted(self: Any, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(self)
        return forward(self, *arguments, **options)

    monkeypatch.setattr(DeformableAttention, "forward", counted)
    assert checkpoint_activations(model) == 4
    trainer_of(model).step(0, next(FakeSource().batches(0, 1)))
    assert len(calls) == 4  # each layer forward and again for the backward pass
    assert len(dropped) == 2 and torch.equal(*dropped)


@pytest.mark.parametrize("changes", [{"pixel_encoder_layers": 1, "decoder_layers": 1}, TWO_WAY])
def test_only_the_parameter_switches_checkpointing_on(changes: dict[str, Any]) -> None:
    model = possam(**{**changes, "hidden_dim": 16})
    trainer_of(model)
    assert not any("forward" in vars(module) for module in model.modules())
    trainer_of(model, activation_checkpointing=True)
    assert sum("forward" in vars(module) for module in model.modules()) == 2


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.position = nn.Parameter(torch.randn(1, 8, 4, 4))
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.patches(images) + self.position)
        return self.head(x.flatten(2).transpose(1, 2))


def test_towers_held_in_bfloat16_give_the_same_bits() -> None:
    torch.manual_seed(0)
    tower, images = Tower().requires_grad_(False), 255 * torch.rand(2, 3, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = tower(images)
        hold_in_bfloat16(tower)
        assert torch.equal(tower(images), expected)
    dtypes = {name: p.dtype for name, p in tower.named_parameters()}
    assert dtypes["patches.weight"] == dtypes["head.bias"] == torch.bfloat16
    assert dtypes["position"] == dtypes["norm.weight"] == torch.float32
