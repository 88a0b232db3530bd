"""Optimiser groups and the learning-rate schedule (section 4.1 of the paper and Mask2Former)."""

import torch
from torch import nn

from possam.training.options import TrainingOptions

_DECAYED = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention)


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters into decayed and exempt ones.

    Linear, convolution and attention layers are decayed; everything else is exempt: normalisation,
    embeddings, learned queries and tokens, the temperature (Mask2Former exempts normalisation and
    embeddings; a decayed temperature would drift to 1).
    """
    # A parameter that several modules share belongs to the first.
    owners: dict[nn.Parameter, nn.Module] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad:
                owners.setdefault(parameter, module)
    decayed = [p for p, owner in owners.items() if isinstance(owner, _DECAYED)]
    exempt = [p for p, owner in owners.items() if not isinstance(owner, _DECAYED)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, training: TrainingOptions) -> torch.optim.AdamW:
    """AdamW over :func:`parameter_groups`; the trainer sets the learning rate at each step."""
    groups = parameter_groups(model, weight_decay=training.weight_decay)
    return torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)


def learning_rate(step: int, training: TrainingOptions) -> float:
    """Learning rate of the 0-based ``step``: linear warmup, then times gamma at each milestone.

    Step 0 has 1/warmup of the full rate, step ``warmup - 1`` the full rate. A pure function of
    the step, so no state of the schedule must be stored.
    """
    warmup = min(1.0, (step + 1) / training.warmup) if training.warmup else 1.0
    passed = sum(step >= milestone for milestone in training.milestones)
    return training.learning_rate * warmup * training.gamma**passed
