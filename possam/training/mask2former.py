"""Weights of Mask2Former for PosSAM's pixel decoder and mask decoder (Cheng et al. 2022).

The files read are those of ``transformers``' ``Mask2FormerModel`` and
``Mask2FormerForUniversalSegmentation``, whose decoders PosSAM's equal layer by layer. Two things
leave no trace in a file and are not checked: ``pre_norm`` (PosSAM's norms follow the residuals, as
in every published checkpoint), and how the product of heads and points is divided.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from possam.model.encoders.state_dicts import read_state_dict
from possam.model.possam import PosSAM
from possam.model.region_decoder import Mask2FormerDecoder
from possam.runtime.errors import InputError, WrongVariantError

_PIXEL = "pixel_level_module.decoder"
_QUERY = "transformer_module"
_NAMES = {
    f"{_PIXEL}.level_embed": "pixel_decoder.level_embed",
    f"{_PIXEL}.input_projections": "pixel_decoder.input_projections",
    f"{_PIXEL}.adapter_1": "pixel_decoder.lateral",
    f"{_PIXEL}.layer_1": "pixel_decoder.output",
    f"{_PIXEL}.mask_projection": "pixel_decoder.mask_projection",
    f"{_PIXEL}.encoder.layers.#.self_attn": "pixel_decoder.layers.#.attention",
    f"{_PIXEL}.encoder.layers.#.self_attn_layer_norm": "pixel_decoder.layers.#.attention_norm",
    f"{_PIXEL}.encoder.layers.#.fc1": "pixel_decoder.layers.#.ffn.fc1",
    f"{_PIXEL}.encoder.layers.#.fc2": "pixel_decoder.layers.#.ffn.fc2",
    f"{_PIXEL}.encoder.layers.#.final_layer_norm": "pixel_decoder.layers.#.ffn_norm",
    f"{_QUERY}.queries_features.weight": "mask_decoder.query_features",
    f"{_QUERY}.queries_embedder.weight": "mask_decoder.query_positions",
    f"{_QUERY}.level_embed.weight": "mask_decoder.level_embed",
    f"{_QUERY}.decoder.layernorm": "mask_decoder.norm",
    f"{_QUERY}.decoder.mask_predictor.mask_embedder.0.0": "mask_decoder.mask_head.0",
    f"{_QUERY}.decoder.mask_predictor.mask_embedder.1.0": "mask_decoder.mask_head.2",
    f"{_QUERY}.decoder.mask_predictor.mask_embedder.2.0": "mask_decoder.mask_head.4",
    f"{_QUERY}.decoder.layers.#.cross_attn": "mask_decoder.layers.#.cross_attention",
    f"{_QUERY}.decoder.layers.#.cross_attn_layer_norm": "mask_decoder.layers.#.cross_norm",
    f"{_QUERY}.decoder.layers.#.self_attn": "mask_decoder.layers.#.self_attention",
    f"{_QUERY}.decoder.layers.#.self_attn_layer_norm": "mask_decoder.layers.#.self_norm",
    f"{_QUERY}.decoder.layers.#.fc1": "mask_decoder.layers.#.ffn.fc1",
    f"{_QUERY}.decoder.layers.#.fc2": "mask_decoder.layers.#.ffn.fc2",
    f"{_QUERY}.decoder.layers.#.final_layer_norm": "mask_decoder.layers.#.ffn_norm",
}
"""Mask2Former's modules -> PosSAM's; ``#`` is a layer's number. The rest of a name stays."""

_PATTERNS = tuple(
    (re.compile(re.escape(theirs).replace(r"\#", r"(\d+)") + r"(?=\.|$)"), ours.replace("#", r"\1"))
    for theirs, ours in _NAMES.items()
)
_LEFT_OUT = ("pixel_level_module.encoder.", "class_predictor.", "criterion.")
"""Without counterpart in PosSAM: backbone, closed-vocabulary classes, weights of the loss."""

_DECODERS = ("pixel_decoder.", "mask_decoder.")
_PROJECTION = re.compile(r"(pixel_decoder\.(?:input_projections\.\d+|lateral))\.")
"""Blocks that read the backbone's maps; in PosSAM they read the pyramid's maps."""


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """Sizes of both decoders, read off tensor shapes and named as the ``model`` parameters."""

    hidden_dim: int
    queries: int
    pixel_encoder_layers: int
    pixel_encoder_ffn: int
    decoder_layers: int
    decoder_ffn: int
    heads_x_deformable_points: int
    mask_channels: int


@dataclass(frozen=True, kw_only=True)
class Mask2FormerWeights:
    """What a checkpoint gives to PosSAM.

    Attributes:
        tensors: float32, by PosSAM's names.
        fresh: blocks of PosSAM's decoders that keep their initial weights, because those in the
            file read maps of another width.
    """

    tensors: dict[str, Tensor]
    fresh: tuple[str, ...]


def rename_mask2former(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Mask2Former state dict of any sizes, with PosSAM's names and in float32.

    Fused projections of query, key and value are split. Tensors with unknown names are a
    :class:`WrongVariantError`.
    """
    prefix = "model." if any(key.startswith(f"model.{_QUERY}.") for key in state) else ""
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if name.startswith(_LEFT_OUT):
            continue
        for pattern, ours in _PATTERNS if key.startswith(prefix) else ():
            if pattern.match(name):
                renamed.update(_split(pattern.sub(ours, name, count=1), value.float()))
                break
        else:
            unknown.append(key)
    if unknown:
        raise WrongVariantError(
            f"not a Mask2Former that PosSAM's decoders can start from: {len(unknown)} tensors "
            f"have no counterpart, first {min(unknown)}"
        )
    return renamed


def _split(name: str, value: Tensor) -> dict[str, Tensor]:
    """Query, key and value from ``in_proj_weight`` and ``in_proj_bias``; others as they are."""
    module, _, kind = name.rpartition(".in_proj_")
    if not module:
        return {name: value}
    parts = zip("qkv", value.tensor_split(3), strict=True)
    return {f"{module}.{letter}_proj.{kind}": part for letter, part in parts}


def describe_decoders(tensors: Mapping[str, Tensor]) -> DecoderSizes:
    """Sizes of decoders from their tensors (PosSAM's names); those of missing layers are 0.

    Raises :class:`InputError` if the queries or the mask features are missing.
    """

    def rows(key: str) -> int:
        return tensors[key].shape[0] if key in tensors else 0

    def layers(decoder: str) -> int:
        numbers = (re.match(rf"{decoder}\.layers\.(\d+)\.", key) for key in tensors)
        return len({number.group(1) for number in numbers if number})

    try:
        queries, hidden_dim = tensors["mask_decoder.query_features"].shape
        mask_channels = tensors["pixel_decoder.mask_projection.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"not a Mask2Former state dict: nothing becomes {error}") from error
    return DecoderSizes(
        hidden_dim=hidden_dim,
        queries=queries,
        pixel_encoder_layers=layers("pixel_decoder"),
        pixel_encoder_ffn=rows("pixel_decoder.layers.0.ffn.fc1.weight"),
        decoder_layers=layers("mask_decoder"),
        decoder_ffn=rows("mask_decoder.layers.0.ffn.fc1.weight"),
        heads_x_deformable_points=rows("pixel_decoder.layers.0.attention.attention_weights.weight")
        // len(tensors.get("pixel_decoder.level_embed", (0,))),
        mask_channels=mask_channels,
    )


def convert_mask2former(
    state: Mapping[str, Tensor], *, target: Mapping[str, Tensor]
) -> Mask2FormerWeights:
    """The tensors of a Mask2Former that fit into PosSAM's decoders.

    Args:
        state: a state dict of ``Mask2FormerModel`` or ``Mask2FormerForUniversalSegmentation``.
        target: PosSAM's state dict (or that of its two decoders), whose shapes decide what fits.

    Returns:
        Every tensor of both decoders, except that projections of the backbone's maps (three input
        projections, one lateral) are taken over only where their shapes agree.

    Raises:
        InputError: not a Mask2Former state dict, or missing or damaged tensors.
        WrongVariantError: other sizes than the target's; both are named.
    """
    tensors = rename_mask2former(state)
    found, needed = asdict(describe_decoders(tensors)), asdict(describe_decoders(target))
    differences = [
        f"{name} {size} (here {needed[name]})"
        for name, size in found.items()
        if size != needed[name]
    ]
    if differences:
        raise WrongVariantError(
            f"a Mask2Former of other sizes: {', '.join(differences)}; give the run's model these "
            "sizes or take another checkpoint"
        )
    expected = {key: value for key, value in target.items() if key.startswith(_DECODERS)}
    odd = sorted(set(tensors) ^ set(expected))
    if odd:
        what = "lacks what becomes" if odd[0] in expected else "has what would become"
        raise InputError(f"a damaged Mask2Former state dict: it {what} {odd[0]}")
    other = {key for key, value in expected.items() if tensors[key].shape != value.shape}
    blocks = {key: match.group(1) for key in expected if (match := _PROJECTION.match(key))}
    fresh = {blocks[key] for key in other if key in blocks}
    damaged = sorted(other - set(blocks))
    if damaged:
        key = damaged[0]
        raise InputError(
            f"a damaged Mask2Former state dict: {key} would be {tuple(tensors[key].shape)}, "
            f"expected {tuple(expected[key].shape)}"
        )
    return Mask2FormerWeights(
        tensors={key: value for key, value in tensors.items() if blocks.get(key) not in fresh},
        fresh=tuple(sorted(fresh)),
    )


def start_from_mask2former(model: PosSAM, path: Path) -> Mask2FormerWeights:
    """Put the weights of a checkpoint file into ``model`` and print what was copied.

    Raises :class:`InputError` for a model with another decoder or an unreadable file, and what
    :func:`convert_mask2former` raises. After an error the model is as it was.
    """
    if not isinstance(model.decoder, Mask2FormerDecoder):
        raise InputError(
            f"{path}: the run's model.decoder has no parts of Mask2Former; use decoder: mask2former"
        )
    state = read_state_dict(path, kind="Mask2Former")
    try:
        weights = convert_mask2former(state, target=model.decoder.state_dict())
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    model.decoder.load_state_dict(weights.tensors, strict=False)
    fresh = ", ".join(weights.fresh) or "nothing else"
    print(
        f"{path}: {len(weights.tensors)} tensors of Mask2Former's decoders taken over; newly "
        f"initialised, beside what PosSAM adds: {fresh}",
        flush=True,
    )
    return weights
