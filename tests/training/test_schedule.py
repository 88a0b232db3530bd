"""Learning rate by hand; which parameters are decayed."""

import pytest
import torch
from torch import nn

from possam.training.schedule import build_optimizer, learning_rate, parameter_groups
from tests.support.training_fakes import possam, training_params


def test_learning_rate_by_hand() -> None:
    training = training_params(learning_rate=1.0, warmup=4, milestones=(6, 8), gamma=0.1)
    found = [learning_rate(step, training) for step in range(10)]
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    assert found == pytest.approx(expected)


def test_no_warmup_starts_at_the_full_rate() -> None:
    assert learning_rate(0, training_params(learning_rate=0.5, warmup=0)) == 0.5


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(2, 2), nn.LayerNorm(2)
        self.conv, self.attention = nn.ConvTranspose2d(2, 2, 2), nn.MultiheadAttention(2, 1)
        self.embedding, self.queries = nn.Embedding(3, 2), nn.Parameter(torch.zeros(3, 2))
        self.tied = nn.Linear(2, 2, bias=False)
        self.tied.weight = self.linear.weight
        self.still = nn.Parameter(torch.zeros(1), requires_grad=False)


def test_norms_embeddings_and_bare_parameters_are_not_decayed() -> None:
    model = Mixed()
    groups = parameter_groups(model, weight_decay=0.05)
    names = {id(value): name for name, value in model.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in groups)
    assert exempt == {"norm.weight", "norm.bias", "embedding.weight", "queries"}
    assert {"linear.weight", "conv.weight", "attention.in_proj_weight"} <= decayed
    assert len({id(p) for p in groups[0]["params"]}) == len(groups[0]["params"])
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0]


def test_each_trainable_parameter_is_in_one_group() -> None:
    model = possam()
    groups = build_optimizer(model, training_params()).param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    exempt = {id(parameter) for parameter in groups[1]["params"]}
    assert id(model.void_embed) in exempt and id(model.log_logit_scale) in exempt
