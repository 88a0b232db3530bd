"""Less memory for the same numbers: activation checkpointing, frozen towers in bfloat16."""

from functools import partial

import torch
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from possam.model.mask_decoder import MaskedDecoderLayer
from possam.model.pixel_decoder import DeformableEncoderLayer

_LAYERS = (DeformableEncoderLayer, MaskedDecoderLayer, TwoWayAttentionBlock)


def checkpoint_activations(model: nn.Module) -> int:
    """Store only the inputs of the layers of the pixel and mask decoders for the backward pass.

    The backward pass computes each layer again, with the same random numbers (Chen et al. 2016,
    "Training Deep Nets with Sublinear Memory Cost"). Names of parameters stay as they are.

    Returns:
        The number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    for layer in layers:
        # an attribute of the instance hides the class's method; names and hooks stay as they are
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def hold_in_bfloat16(*towers: nn.Module) -> None:
    """Hold the weights of linear layers and convolutions in bfloat16, in place.

    The towers run under autocast, which casts these weights at every use. Held in bfloat16, they
    give the same outputs to the last bit, and save half of the memory and all casts. Normalisation
    and position embeddings stay in float32, as under autocast.
    """
    for tower in towers:
        for module in tower.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
