"""Activation checkpointing: less memory, more time, the same gradients."""

from functools import partial

from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import nn
from torch.utils.checkpoint import checkpoint

from possam.model.mask_decoder import MaskedDecoderLayer
from possam.model.pixel_decoder import DeformableEncoderLayer

_LAYERS = (DeformableEncoderLayer, MaskedDecoderLayer, TwoWayAttentionBlock)


def checkpoint_activations(model: nn.Module) -> int:
    """Let the layers of the pixel and mask decoders keep their inputs alone for the backward pass.

    What is inside a layer is computed again there, with the same random numbers (Chen et al. 2016,
    "Training Deep Nets with Sublinear Memory Cost"). Names of parameters stay as they are.

    Returns:
        The number of layers.
    """
    layers = [module for module in model.modules() if isinstance(module, _LAYERS)]
    for layer in layers:
        # on the instance, before the class's own: nothing else sees a difference
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)
