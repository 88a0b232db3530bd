"""transformers' Mask2Former decoders beside PosSAM's, with the weights that the converter gives."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from possam.model import mask_decoder as mask_decoder_module
from possam.model.mask_decoder import MaskDecoder, attention_mask
from possam.model.pixel_decoder import PixelDecoder
from possam.training.mask2former import convert_mask2former, rename_mask2former
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity

reference: Any = LazyModule("transformers.models.mask2former.modeling_mask2former")

LAYER, WHOLE, GRADIENT = 1e-5, 1e-4, 1e-4
"""Bounds of float32: one module, a whole decoder, gradients."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    channels: int = 64
    heads: int = 4
    queries: int = 9
    encoder_layers: int = 2
    encoder_ffn: int = 96
    decoder_layers: int = 4
    decoder_ffn: int = 80
    widths: tuple[int, ...] = (24, 32, 40, 48)
    """Channels of the four maps, finest first."""


PAPER = Sizes(
    channels=256,
    heads=8,
    queries=250,
    encoder_layers=6,
    encoder_ffn=1024,
    decoder_layers=9,
    decoder_ffn=2048,
    widths=(256, 256, 256, 256),
)


def config_of(sizes: Sizes, **more: Any) -> Any:
    return reference.Mask2FormerConfig(
        feature_size=sizes.channels,
        mask_feature_size=sizes.channels,
        hidden_dim=sizes.channels,
        encoder_feedforward_dim=sizes.encoder_ffn,
        dim_feedforward=sizes.decoder_ffn,
        encoder_layers=sizes.encoder_layers,
        decoder_layers=sizes.decoder_layers + 1,  # they count the prediction before the first layer
        num_attention_heads=sizes.heads,
        num_queries=sizes.queries,
        dropout=0.0,
        **more,
    )


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module, *, seed: int, scale: float) -> None:
    """Weights far from their initial values, so that no path is trivially zero; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part.named_parameters(recurse=False):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
                if isinstance(part, nn.LayerNorm | nn.GroupNorm) and name == "weight":
                    parameter += 1


@dataclass
class Decoders:
    """Both decoders of both kinds. ``theirs`` names its tensors as ``Mask2FormerModel`` does."""

    ours: nn.ModuleDict
    theirs: Any

    @property
    def our_pixel(self) -> PixelDecoder:
        return self.ours["pixel_decoder"]  # type: ignore[return-value]

    @property
    def our_mask(self) -> MaskDecoder:
        return self.ours["mask_decoder"]  # type: ignore[return-value]

    @property
    def their_pixel(self) -> Any:
        return self.theirs.pixel_level_module.decoder

    @property
    def their_mask(self) -> Any:
        return self.theirs.transformer_module


def our_decoders(sizes: Sizes) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "pixel_decoder": PixelDecoder(
                in_channels=sizes.widths,
                channels=sizes.channels,
                mask_channels=sizes.channels,
                heads=sizes.heads,
                layers=sizes.encoder_layers,
                ffn=sizes.encoder_ffn,
                points=4,
            ),
            "mask_decoder": MaskDecoder(
                channels=sizes.channels,
                mask_channels=sizes.channels,
                queries=sizes.queries,
                heads=sizes.heads,
                layers=sizes.decoder_layers,
                ffn=sizes.decoder_ffn,
            ),
        }
    )


def decoders(sizes: Sizes, *, seed: int = 4, scale: float = 0.1) -> Decoders:
    """Random weights in theirs, converted into ours; every tensor finds its place."""
    theirs = nn.Module()
    theirs.pixel_level_module = nn.Module()
    theirs.pixel_level_module.decoder = reference.Mask2FormerPixelDecoder(
        config_of(sizes), feature_channels=list(sizes.widths)
    )
    theirs.transformer_module = reference.Mask2FormerTransformerModule(
        sizes.channels, config_of(sizes)
    )
    randomise(theirs, seed=seed, scale=scale)
    ours = our_decoders(sizes)
    weights = convert_mask2former(theirs.state_dict(), target=ours.state_dict())
    assert weights.fresh == ()
    ours.load_state_dict(weights.tensors)
    return Decoders(ours, theirs)


def watch(modules: Sequence[nn.Module]) -> list[Tensor]:
    """A list that fills with the outputs of the modules, in the order of their calls."""
    outputs: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        outputs.append((output[0] if isinstance(output, tuple) else output).detach())

    for module in modules:
        module.register_forward_hook(keep)
    return outputs


def attention_masks(their_mask: Any, *, heads: int) -> list[Tensor]:
    """A list that fills as theirs runs: where each layer's queries may look, (B, Q, N) bool."""
    masks: list[Tensor] = []

    def keep(module: nn.Module, arguments: Any, options: dict[str, Any]) -> None:
        masks.append(~options["attn_mask"][::heads])

    for layer in their_mask.decoder.layers:
        layer.cross_attn.register_forward_pre_hook(keep, with_kwargs=True)
    return masks


@dataclass
class SharedMasks:
    """Stands for ``attention_mask``: returns the reference's masks and counts what ours change.

    A mask is the sign of a logit, so rounding may turn it where the logit is nearly 0, and what
    follows is then of another input. ``flipped`` counts these places among all ``places``;
    ``largest`` is the largest logit among them, as a share of the largest of its layer.
    """

    masks: Iterator[Tensor]
    places: int = 0
    flipped: int = 0
    largest: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        theirs = next(self.masks)
        turned = attention_mask(logits) != theirs
        self.places += turned.numel()
        self.flipped += int(turned.sum())
        if turned.any():
            share = logits[turned].abs().max() / logits.abs().max()
            self.largest = max(self.largest, share.item())
        return theirs


@dataclass(frozen=True)
class Run:
    """Outputs by name, and inputs with their gradients."""

    outputs: dict[str, Tensor]
    inputs: list[Tensor]


def leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]


def run_pixel_decoders(pair: Decoders, maps: Sequence[Tensor]) -> tuple[Run, Run]:
    """Forward and backward through both, on four maps (B, C_i, H_i, W_i), finest first."""

    def ours(inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        features, levels, shapes = pair.our_pixel(inputs)
        assert shapes == [tuple(level.shape[-2:]) for level in reversed(maps[1:])]
        return features, [level.transpose(1, 2) for level in levels]

    def theirs(inputs: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        decoded = pair.their_pixel(inputs)
        return decoded.mask_features, [level.flatten(2) for level in decoded.multi_scale_features]

    return (
        _run_pixel(ours, list(pair.our_pixel.layers), maps),
        _run_pixel(theirs, list(pair.their_pixel.encoder.layers), maps),
    )


def _run_pixel(
    decode: Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]],
    modules: Sequence[nn.Module],
    maps: Sequence[Tensor],
) -> Run:
    layers, inputs = watch(modules), leaves(maps)
    features, levels = decode(inputs)
    (features * random(*features.shape, seed=50).to(features.dtype)).sum().backward()
    outputs = {f"layer {index}": layer for index, layer in enumerate(layers)}
    outputs |= {f"level {index}": level.detach() for index, level in enumerate(levels)}
    return Run({**outputs, "mask features": features.detach()}, inputs)


def run_mask_decoders(
    pair: Decoders, maps: Sequence[Tensor], mask_features: Tensor
) -> tuple[Run, Run, SharedMasks]:
    """Forward and backward through both, on three maps (B, C, H_i, W_i), coarsest first.

    Ours looks through the reference's attention masks, and counts where its own would differ.
    """
    masks = attention_masks(
        pair.their_mask, heads=pair.their_mask.decoder.config.num_attention_heads
    )
    layers = [watch(list(part.layers)) for part in (pair.our_mask, pair.their_mask.decoder)]
    inputs = [leaves([*maps, mask_features]), leaves([*maps, mask_features])]

    *their_maps, their_features = inputs[1]
    result = pair.their_mask(their_maps, their_features)
    hidden = torch.stack([h.transpose(0, 1) for h in result.intermediate_hidden_states], 1)
    logits = torch.stack([each.flatten(2) for each in result.masks_queries_logits], 1)
    goal = random(1, 1, *logits.shape[2:], seed=40).to(logits.dtype) / len(logits[0, 0, 0]) ** 0.5
    pull = random(*hidden.shape, seed=41).to(hidden.dtype)
    ((logits * goal).sum() + (hidden * pull).sum()).backward()
    theirs = Run(_by_layer(logits, hidden, [each.transpose(0, 1) for each in layers[1]]), inputs[1])
    del result

    *our_maps, our_features = inputs[0]
    shared = SharedMasks(iter(masks))
    with mock.patch.object(mask_decoder_module, "attention_mask", shared):
        hidden, embeddings = pair.our_mask(
            [level.flatten(2).transpose(1, 2) for level in our_maps],
            our_features,
            shapes=[(level.shape[-2], level.shape[-1]) for level in our_maps],
            all_layers=True,
        )
    logits = embeddings @ our_features.flatten(2)[:, None]
    ((logits * goal).sum() + (hidden * pull).sum()).backward()
    return Run(_by_layer(logits, hidden, layers[0]), inputs[0]), theirs, shared


def _by_layer(logits: Tensor, hidden: Tensor, layers: Sequence[Tensor]) -> dict[str, Tensor]:
    """Predictions before the first layer and after each; and each layer's own output."""
    outputs = {f"layer {index}": layer for index, layer in enumerate(layers)}
    for name, stacked in (("mask logits", logits), ("region features", hidden)):
        outputs |= {
            f"{name} {index}": each for index, each in enumerate(stacked.detach().unbind(1))
        }
    return outputs


def compare_runs(parity: Parity, ours: Run, theirs: Run, *, bound: float = WHOLE) -> None:
    """One case per output."""
    assert set(ours.outputs) == set(theirs.outputs)
    for name in theirs.outputs:
        parity.close(ours.outputs[name], theirs.outputs[name], bound=bound)


def compare_gradients(
    parity: Parity, ours: nn.Module, theirs: Mapping[str, Tensor], *, bound: float = GRADIENT
) -> None:
    """One case per parameter: its gradient, relative to the largest of the tensor.

    ``theirs``: gradients by PosSAM's names. A bias of attention keys moves every logit of a query
    alike, so its gradient is 0 up to rounding: it is compared together with its weight's.
    """
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert set(gradients) == set(theirs) and None not in gradients.values()
    for name in theirs:
        if name.endswith("k_proj.bias"):
            continue
        pair = [name]
        if name.endswith("k_proj.weight"):
            pair.append(name.replace("weight", "bias"))
        mine, yours = (
            torch.cat([table[key].flatten() for key in pair]) for table in (gradients, theirs)
        )
        parity.close(mine, yours, bound=bound)


def compare_input_gradients(
    parity: Parity, ours: Run, theirs: Run, *, bound: float = GRADIENT
) -> None:
    """One case per input."""
    for mine, yours in zip(ours.inputs, theirs.inputs, strict=True):
        parity.close(mine.grad, yours.grad, bound=bound)


def gradients_of(theirs: nn.Module, *, prefix: str = "") -> dict[str, Tensor]:
    """Gradients of the reference by PosSAM's names, of those below ``prefix``, without it.

    The converter renames and splits them, as it does with the weights.
    """
    found = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    renamed = rename_mask2former(found)
    return {
        name.removeprefix(prefix): value
        for name, value in renamed.items()
        if name.startswith(prefix)
    }
