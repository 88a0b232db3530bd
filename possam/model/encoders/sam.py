"""The frozen SAM: architectures, checkpoints, and a fast encoder over segment_anything's own
weights.

Shapes: B images, C channels, H W pixels, h w tokens (H / patch, W / patch, rounded up).
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
from segment_anything.modeling.image_encoder import (
    Attention,
    Block,
    get_rel_pos,
    window_unpartition,
)
from torch import Tensor, nn

from possam.model.encoders.state_dicts import read_state_dict
from possam.model.ops.fast_linear import fast_linear, fast_linear_gelu
from possam.runtime.errors import InputError, WrongVariantError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
_MANY_TOKENS = 1024
"""From here on attention on a CPU is faster in rows than fused."""
_ROWS = 512
"""Queries of a head whose scores are there at a time: 8 MiB for the 64 x 64 tokens of an image."""

_MASK_CELLS = 1 << 21
"""Biases of windows that are there at a time: 8 MiB."""


@dataclass(frozen=True, kw_only=True)
class SamArchitecture:
    """Everything that ``segment_anything`` needs to build one SAM (Kirillov et al. 2023, appendix
    A).
    """

    name: str
    embed_dim: int
    depth: int
    num_heads: int
    global_attention: tuple[int, ...]
    """Numbers of the blocks that attend to all tokens; the others attend within windows."""
    patch_size: int = 16
    window_size: int = 14
    image_size: int = 1024
    """Side of the square images that it was trained on, in pixels."""
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
    """The architecture called ``name``; an unknown name is an :class:`InputError` that lists the
    valid ones.
    """
    if name not in ARCHITECTURES:
        raise InputError(f"SAM {name!r}: unknown; choose one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def build_sam(architecture: SamArchitecture) -> Sam:
    """A randomly initialised ``segment_anything`` SAM with the official pixel statistics, in
    evaluation mode.
    """
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
    """Infer the architecture of a SAM state dict from the shapes of its tensors.

    The result carries the name of the variant with the same encoder, or ``"unknown"``. The window
    size is the side of the smaller relative-position tables, the global layers are those with the
    larger ones; ``decoder_heads`` leaves no trace in shapes and is taken from the known variant.
    Raises :class:`InputError` when the tensors of a SAM are not there.
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
    """Load a SAM checkpoint (official state-dict layout) in fp32 on the CPU.

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


def _attend(attention: Attention, qkv: Tensor) -> Tensor:
    """``Attention.forward`` between its two projections: (B, h, w, 3 C) -> (B, h, w, C).

    The decomposed relative position bias is ``q . rel_h[y] + q . rel_w[x]`` for a key at (y, x).
    """
    batch, height, width, channels = qkv.shape
    heads, channels = attention.num_heads, channels // 3
    qkv = qkv.view(batch, height * width, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    grid = query.unflatten(2, (height, width))
    table_h = get_rel_pos(height, height, attention.rel_pos_h).to(query.dtype)
    table_w = get_rel_pos(width, width, attention.rel_pos_w).to(query.dtype)
    bias_h = torch.einsum("bnyxc,ykc->bnyxk", grid, table_h).flatten(2, 3)
    bias_w = torch.einsum("bnyxc,xkc->bnyxk", grid, table_w).flatten(2, 3)
    query = query * attention.scale
    attend = _attend_fused
    if qkv.device.type == "cpu" and not torch.is_grad_enabled():
        attend = _attend_in_rows if height * width >= _MANY_TOKENS else _attend_in_windows
    out = attend(query, key, value, bias_h, bias_w)
    return out.transpose(1, 2).reshape(batch, height, width, channels)


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """Attention (B, n, h w, D) with biases (B, n, h w, h) and (B, n, h w, w), on fused kernels.

    The biases appended to the queries and a one-hot code of y and x appended to the keys make the
    bias part of the dot product: exact, and no (h w)^2 bias is ever stored.
    """
    height, width, size = bias_h.shape[-1], bias_w.shape[-1], value.shape[-1]
    rows = torch.eye(height, dtype=query.dtype, device=query.device)
    columns = torch.eye(width, dtype=query.dtype, device=query.device)
    code = torch.cat((rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)), dim=1)
    query = torch.cat((query, bias_h, bias_w), dim=-1)
    key = torch.cat((key, code.expand(*key.shape[:2], -1, -1)), dim=-1)
    # Fused kernels want one head size for queries, keys and values.
    value = F.pad(value, (0, height + width))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :size]


@torch.compiler.disable
def _attend_in_rows(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """The same on a CPU, a head and some rows of queries at a time, in float32.

    The fused kernel works on appended biases and padded values three times as long as it did
    without, and multiplies through MKL; here the bias is added to scores that lie in the cache.
    """
    batch, heads, tokens, _ = query.shape
    height, width = bias_h.shape[-1], bias_w.shape[-1]
    out = torch.empty_like(query)
    scores = torch.empty(_ROWS, tokens)
    with torch.autocast("cpu", enabled=False):
        for image in range(batch):
            for head in range(heads):
                keys = key[image, head].float().contiguous()
                values = value[image, head].float().t().contiguous()
                for start in range(0, tokens, _ROWS):
                    part = (image, head, slice(start, start + _ROWS))
                    rows = fast_linear(query[part].float(), keys)
                    grid = rows.view(-1, height, width)
                    grid += bias_h[part].float()[:, :, None]
                    grid += bias_w[part].float()[:, None, :]
                    probs = torch.softmax(rows, dim=-1, out=scores[: len(rows)])
                    out[part] = fast_linear(probs, values)
    return out


@torch.compiler.disable
def _attend_in_windows(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """The same for many short sequences on a CPU, in float32: the biases of a few windows at a time
    are a mask of the fused kernel, which is several times slower in bfloat16, and would round them.
    """
    windows, heads, tokens, _ = query.shape
    count = max(1, _MASK_CELLS // (heads * tokens**2))
    out = torch.empty_like(query)
    with torch.autocast("cpu", enabled=False):
        for start in range(0, windows, count):
            part = slice(start, start + count)
            bias = bias_h[part].float().unsqueeze(-1) + bias_w[part].float().unsqueeze(-2)
            q, k, v = (tensor[part].float() for tensor in (query, key, value))
            out[part] = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias.flatten(-2), scale=1.0
            )
    return out


def _to_windows(x: Tensor, size: int, fill: Tensor) -> Tensor:
    """(B, h, w, C) -> (windows, size, size, C), cells outside the map holding ``fill`` (C)."""
    batch, height, width, channels = x.shape
    rows, columns = -(-height // size), -(-width // size)
    if (rows * size, columns * size) != (height, width):
        padded = x.new_empty(batch, rows * size, columns * size, channels)
        padded[:, :height, :width] = x
        padded[:, :height, width:] = fill
        padded[:, height:] = fill
        x = padded
    x = x.view(batch, rows, size, columns, size, channels).transpose(2, 3)
    return x.reshape(-1, size, size, channels)


def _run_block(block: Block, x: Tensor) -> Tensor:
    """``Block.forward``, (B, h, w, C) -> the same.

    Cells that only fill up windows are zeros before the projection to queries, keys and values,
    which makes its bias of them; so they are added after it. What they attend to is dropped.
    """
    attention, mlp, size = block.attn, block.mlp, (x.shape[1], x.shape[2])
    qkv = fast_linear(block.norm1(x), attention.qkv.weight, attention.qkv.bias)
    window = block.window_size
    if window > 0:
        mixed = _attend(attention, _to_windows(qkv, window, attention.qkv.bias))
        padded = tuple(-(-side // window) * window for side in size)
        mixed = window_unpartition(mixed, window, padded, size)
    else:
        mixed = _attend(attention, qkv)
    x = x + fast_linear(mixed, attention.proj.weight, attention.proj.bias)
    hidden = fast_linear_gelu(block.norm2(x), mlp.lin1.weight, mlp.lin1.bias)
    return x + fast_linear(hidden, mlp.lin2.weight, mlp.lin2.bias)


def run_encoder(encoder: ImageEncoderViT, images: Tensor) -> Tensor:
    """``ImageEncoderViT.forward`` for any size that is a multiple of the patch, on fused attention.

    ``images``: normalised (B, 3, H, W). Returns (B, C, h, w). The absolute position embedding is
    interpolated (bicubic) when the grid differs from the pretrained one; segment_anything does the
    same with the relative tables of global layers.
    """
    x = encoder.patch_embed(images)
    position = encoder.pos_embed
    if position is not None:
        if position.shape[1:3] != x.shape[1:3]:
            position = F.interpolate(
                position.permute(0, 3, 1, 2), size=x.shape[1:3], mode="bicubic", align_corners=False
            ).permute(0, 2, 3, 1)
        x = x + position
    for block in encoder.blocks:
        x = _run_block(block, x)
    out: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return out


class SamEncoder(nn.Module):
    """SAM's image encoder, frozen: no gradients, evaluation mode also after ``train()``.

    It runs over the weights of the ``ImageEncoderViT`` that it is given (attribute ``encoder``).
    """

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
        """Encode RGB images, float (B, 3, H, W), 0 to 255, of any size, to (B, C, ceil(H / stride),
        ceil(W / stride)).

        Images are normalised with SAM's pixel statistics, then padded right and below with zeros to
        a multiple of the patch, as SAM pads its inputs.
        """
        x = (images - self.pixel_mean) / self.pixel_std
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.stride, 0, -height % self.stride))
        return run_encoder(self.encoder, x)
