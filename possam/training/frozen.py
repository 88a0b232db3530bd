"""Frozen towers in reduced precision."""

import torch
from torch import nn


def hold_in_bfloat16(*towers: nn.Module) -> None:
    """Hold the weights of linear layers and convolutions in bfloat16, in place.

    Under autocast, which the towers run in, these are the weights that are cast at every use: the
    outputs stay the same to the last bit, half of the memory and all of the casts are saved.
    Normalisation and position embeddings stay in float32, as autocast has them.
    """
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
