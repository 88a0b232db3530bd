"""The frozen SAM: architectures, checkpoints, and its image encoder.

Shapes: B images, C channels, H W pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn

from possam.model.encoders.state_dicts import read_state_dict
from possam.model.ops.sam_encoder import run_encoder
from possam.runtime.errors import InputError, WrongVariantError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class SamArchitecture:
    """What ``segment_anything`` needs to build one SAM (Kirillov et al. 2023, appendix A)."""

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    global_attention: tuple[int, ...]
    """Numbers of the blocks that attend to all tokens; the others attend within windows."""
    patch_size: int = 16
    window_size: int = 14
    image_size: int = 1024
    """Side of the square images that the model was trained on, in pixels."""
    out_channels: int = 256
    """Channels of the encoder's output and of the prompt encoder and mask decoder."""
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    mask_in_channels: int = 16


def _synthetic(
    name: str, embed_dim: int, depth: int, global_attention: tuple[int, ...]
) -> SamArchitecture:
    return SamArchitecture(
        name=name, embed_dim=embed_dim, depth=depth, num_heads=4, global_attention=global_attention,
        patch_size=8, window_size=8, image_size=128, out_channels=64, decoder_heads=4,
        decoder_mlp_dim=256, iou_hidden_dim=128,
    )  # fmt: skip


def _official(
    name: str, embed_dim: int, depth: int, num_heads: int, global_attention: tuple[int, ...]
) -> SamArchitecture:
    return SamArchitecture(
        name=name, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        global_attention=global_attention,
    )  # fmt: skip


ARCHITECTURES: Mapping[str, SamArchitecture] = MappingProxyType(
    {
        architecture.name: architecture
        for architecture in (
            _official("vit_b", 768, 12, 12, (2, 5, 8, 11)),
            _official("vit_l", 1024, 24, 16, (5, 11, 17, 23)),
            _official("vit_h", 1280, 32, 16, (7, 15, 23, 31)),
            _synthetic("synthetic_b", 64, 4, (1, 3)),
            _synthetic("synthetic_l", 96, 6, (2, 5)),
            _synthetic("synthetic_h", 128, 8, (1, 3, 5, 7)),
        )
    }
)
"""The official SAMs and those of the mini world, by name."""


def find_architecture(name: str) -> SamArchitecture:
    """The architecture called ``name``, or an :class:`InputError` that lists the valid names."""
    if name not in ARCHITECTURES:
        raise InputError(f"SAM {name!r}: unknown; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_sam(architecture: SamArchitecture) -> Sam:
    """A randomly initialised ``segment_anything`` SAM in evaluation mode."""
    grid = architecture.image_size // architecture.patch_size
    width = architecture.out_channels
    encoder = ImageEncoderViT(
        depth=architecture.depth,
        embed_dim=architecture.embed_dim,
        img_size=architecture.image_size,
        mlp_ratio=4,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=architecture.num_heads,
        patch_size=architecture.patch_size,
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=architecture.global_attention,
        window_size=architecture.window_size,
        out_chans=width,
    )
    prompt = PromptEncoder(
        embed_dim=width,
        image_embedding_size=(grid, grid),
        input_image_size=(architecture.image_size, architecture.image_size),
        mask_in_chans=architecture.mask_in_channels,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=width,
            mlp_dim=architecture.decoder_mlp_dim,
            num_heads=architecture.decoder_heads,
        ),
        transformer_dim=width,
        iou_head_depth=3,
        iou_head_hidden_dim=architecture.iou_hidden_dim,
    )
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=prompt,
        mask_decoder=decoder,
        pixel_mean=list(PIXEL_MEAN),
        pixel_std=list(PIXEL_STD),
    )
    return sam.eval()


def describe_state_dict(state_dict: Mapping[str, Tensor]) -> SamArchitecture:
    """The architecture that the shapes of a SAM state dict show; an InputError if it is no SAM.

    One that is not in :data:`ARCHITECTURES` is called ``"unknown"``. The smaller tables of
    relative positions show the window size, the larger ones which layers are global;
    ``decoder_heads`` leaves no trace in shapes and is not compared.
    """
    try:
        patch = state_dict["image_encoder.patch_embed.proj.weight"]
        grid = state_dict["image_encoder.pos_embed"].shape[1]
        out_channels = state_dict["image_encoder.neck.0.weight"].shape[0]
        tables: list[Tensor] = []
        while (key := f"image_encoder.blocks.{len(tables)}.attn.rel_pos_h") in state_dict:
            tables.append(state_dict[key])
        mlp = state_dict["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0]
        iou = state_dict["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0]
        mask = state_dict["prompt_encoder.mask_downscaling.3.weight"].shape[0]
    except KeyError as error:
        raise InputError(f"not a SAM state dict: it has no tensor {error}") from error
    if not tables:
        raise InputError("not a SAM state dict: no block has relative position tables")
    sides = [(len(table) + 1) // 2 for table in tables]
    window = min(sides)
    found = SamArchitecture(
        name="unknown",
        embed_dim=patch.shape[0],
        depth=len(tables),
        num_heads=patch.shape[0] // tables[0].shape[1],
        global_attention=tuple(k for k, side in enumerate(sides) if side > window),
        patch_size=patch.shape[-1],
        window_size=window,
        image_size=grid * patch.shape[-1],
        out_channels=out_channels,
        decoder_mlp_dim=mlp,
        iou_hidden_dim=iou,
        mask_in_channels=mask,
    )
    hidden = {"name", "decoder_heads"}
    compared = [field.name for field in fields(SamArchitecture) if field.name not in hidden]
    for known in ARCHITECTURES.values():
        if all(getattr(found, name) == getattr(known, name) for name in compared):
            return known
    return found


def load_sam(path: str | Path, *, architecture: str) -> Sam:
    """Load a SAM checkpoint (official names) in float32 on the CPU.

    ``architecture``: a key of :data:`ARCHITECTURES`. Raises :class:`InputError` for a missing,
    truncated or foreign file, :class:`WrongVariantError` for the weights of another variant.
    """
    path = Path(path)
    wanted = find_architecture(architecture)
    state = read_state_dict(path, kind="SAM")
    try:
        found = describe_state_dict(state)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: not a SAM state dict: a tensor has another shape") from error
    if found != wanted:
        raise WrongVariantError(
            f"{path}: holds SAM {found.name} (width {found.embed_dim}, depth {found.depth}), but "
            f"{wanted.name} (width {wanted.embed_dim}, depth {wanted.depth}) was asked for: "
            "change the SAM variant or the checkpoint"
        )
    sam = build_sam(wanted)
    try:
        sam.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        raise InputError(f"{path}: the state dict of {found.name} is damaged: {error}") from error
    return sam


class SamEncoder(nn.Module):
    """SAM's image encoder, frozen: no gradients, always in evaluation mode."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, encoder: ImageEncoderViT) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1), False)
        self.requires_grad_(False)
        self.eval()

    @property
    def stride(self) -> int:
        """Pixels per output cell."""
        return int(self.encoder.patch_embed.proj.stride[0])

    @property
    def channels(self) -> int:
        """Channels of the output."""
        return int(self.encoder.neck[0].out_channels)

    def train(self, mode: bool = True) -> "SamEncoder":
        """Stay in evaluation mode whatever ``mode`` says."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), float RGB, 0..255, of any size -> (B, C, H / stride, W / stride).

        Images are normalised, then padded on the right and below with zeros to a multiple of the
        stride, as SAM pads its inputs.
        """
        x = (images - self.pixel_mean) / self.pixel_std
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return run_encoder(self.encoder, x)
