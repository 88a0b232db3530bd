"""A fast forward pass of SAM's image encoder, over segment_anything's own weights.

The plain function is ``ImageEncoderViT.forward``. Here the projections run before windows are
padded, by :mod:`~possam.model.ops.fast_linear`, and no bias of all pairs of tokens is ever stored:
ViT-B at 1024 x 1024 takes a third of the time on a CPU.

Shapes: B images, C channels, H W pixels, h w tokens (H / patch, W / patch, rounded up), n heads of
D channels.
"""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block
from torch import Tensor
from torch.nn import functional as F

from possam.model.ops.fast_linear import fast_linear, fast_linear_gelu

_MANY_TOKENS = 1024
"""From this number of tokens on, attention on a CPU is faster by rows than fused."""
_ROWS = 512
"""Queries of a head whose scores are computed together: 8 MiB for an image of 64 x 64 tokens."""
_MASK_CELLS = 1 << 21
"""Numbers of window biases that are stored together: 8 MiB."""


def run_encoder(encoder: ImageEncoderViT, images: Tensor) -> Tensor:
    """``ImageEncoderViT.forward`` for any size that is a multiple of the patch, on fused attention.

    ``images``: normalised (B, 3, H, W). Returns (B, C, h, w). The absolute position embedding is
    interpolated (bicubic) when the grid differs from the pretrained one; segment_anything does the
    same with the relative tables of global layers.
    """
    x = encoder.patch_embed(images)
    position = encoder.pos_embed
    if position is not None:
        # Resizing to the same size changes nothing: an exported graph, of any size, always resizes.
        if torch.compiler.is_exporting() or position.shape[1:3] != x.shape[1:3]:
            position = F.interpolate(
                position.permute(0, 3, 1, 2), size=x.shape[1:3], mode="bicubic", align_corners=False
            ).permute(0, 2, 3, 1)
        x = x + position
    for block in encoder.blocks:
        x = _run_block(block, x)
    out: Tensor = encoder.neck(x.permute(0, 3, 1, 2))
    return out


def _attend(attention: Attention, qkv: Tensor) -> Tensor:
    """``Attention.forward`` between its two projections: (B, h, w, 3 C) -> (B, h, w, C).

    The decomposed relative position bias is ``q . rel_h[y] + q . rel_w[x]`` for a key at (y, x).
    """
    batch, height, width, channels = qkv.shape
    heads, channels = attention.num_heads, channels // 3
    qkv = qkv.reshape(batch, height * width, 3, heads, channels // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    grid = query.unflatten(2, (height, width))
    table_h = _relative(height, attention.rel_pos_h).to(query.dtype)
    table_w = _relative(width, attention.rel_pos_w).to(query.dtype)
    bias_h = torch.einsum("bnyxc,ykc->bnyxk", grid, table_h).flatten(2, 3)
    bias_w = torch.einsum("bnyxc,xkc->bnyxk", grid, table_w).flatten(2, 3)
    query = query * attention.scale
    attend = _attend_fused
    if torch.compiler.is_exporting():
        attend = _attend_plain
    elif qkv.device.type == "cpu" and not torch.is_grad_enabled():
        attend = _attend_in_rows if height * width >= _MANY_TOKENS else _attend_in_windows
    out = attend(query, key, value, bias_h, bias_w)
    return out.transpose(1, 2).reshape(batch, height, width, channels)


def _relative(side: int, table: Tensor) -> Tensor:
    """``get_rel_pos(side, side, table)``: (side, side, D), of a query at y and a key at k.

    Its index is made on the table's device, so that the host does not wait for a copy.
    """
    if len(table) != 2 * side - 1:  # the image is not of SAM's own size
        table = F.interpolate(table.T[None], size=2 * side - 1, mode="linear")[0].T
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places + (side - 1)]


def _attend_plain(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """Attention (B, n, h w, D) with biases (B, n, h w, h) and (B, n, h w, w), step by step."""
    scores = (query @ key.transpose(-2, -1)).unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))
    scores = scores + bias_h.unsqueeze(-1) + bias_w.unsqueeze(-2)
    return scores.flatten(-2).softmax(-1) @ value


def _attend_fused(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """The same on fused kernels.

    The biases appended to the queries and a one-hot code of y and x appended to the keys make the
    bias part of the dot product: exact, and no (h w)^2 bias is ever stored. Zeros fill the head
    size up to a multiple of 8, which flash attention takes without copies of its own.
    """
    height, width, size = bias_h.shape[-1], bias_w.shape[-1], value.shape[-1]
    rows = torch.eye(height, dtype=query.dtype, device=query.device)
    columns = torch.eye(width, dtype=query.dtype, device=query.device)
    code = torch.cat((rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)), dim=1)
    rest = -(size + height + width) % 8
    query = torch.cat((query, bias_h, bias_w, bias_h.new_zeros(*bias_h.shape[:-1], rest)), dim=-1)
    key = torch.cat((key, F.pad(code, (0, rest)).expand(*key.shape[:2], -1, -1)), dim=-1)
    # Fused kernels want one head size for queries, keys and values.
    value = F.pad(value, (0, height + width + rest))
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)[..., :size]


@torch.compiler.disable
def _attend_in_rows(
    query: Tensor, key: Tensor, value: Tensor, bias_h: Tensor, bias_w: Tensor
) -> Tensor:
    """The same on a CPU, one head and at most ``_ROWS`` queries at a time, in float32.

    With appended biases and padded values the fused kernel takes three times as long as without,
    and multiplies by MKL; here the bias is added to scores that lie in the cache.
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
    """The same for many short sequences on a CPU, with a few windows' biases as the kernel's mask.

    In float32: in bfloat16 the kernel is several times slower, and biases would be rounded.
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


def _windows(side: int, size: int) -> int:
    """How many windows cover ``side``; of positive numbers, since ONNX divides towards zero."""
    return (side + size - 1) // size


def _to_windows(x: Tensor, size: int, fill: Tensor) -> Tensor:
    """(B, h, w, C) -> (windows, size, size, C), cells outside the map holding ``fill`` (C)."""
    batch, height, width, channels = x.shape
    rows, columns = _windows(height, size), _windows(width, size)
    if torch.compiler.is_exporting():  # a graph of any size has no branches
        rest = (0, 0, 0, columns * size - width, 0, rows * size - height)
        x = F.pad(x - fill, rest) + fill
    elif (rows * size, columns * size) != (height, width):
        padded = x.new_empty(batch, rows * size, columns * size, channels)
        padded[:, :height, :width] = x
        padded[:, :height, width:] = fill
        padded[:, height:] = fill
        x = padded
    x = x.view(batch, rows, size, columns, size, channels).transpose(2, 3)
    return x.reshape(-1, size, size, channels)


def _from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`_to_windows`, without the cells outside the map."""
    size, channels = windows.shape[2:]
    rows, columns = _windows(height, size), _windows(width, size)
    x = windows.view(-1, rows, columns, size, size, channels).transpose(2, 3)
    x = x.reshape(-1, rows * size, columns * size, channels)
    return x[:, :height, :width].contiguous()


def _run_block(block: Block, x: Tensor) -> Tensor:
    """``Block.forward``, (B, h, w, C) -> the same.

    The cells that pad windows are zeros before the projection to queries, keys and values, and so
    equal its bias after it, where they are added here. Their own outputs are dropped.
    """
    attention, mlp = block.attn, block.mlp
    qkv = fast_linear(block.norm1(x), attention.qkv.weight, attention.qkv.bias)
    window = block.window_size
    if window > 0:
        mixed = _attend(attention, _to_windows(qkv, window, attention.qkv.bias))
        mixed = _from_windows(mixed, x.shape[1], x.shape[2])
    else:
        mixed = _attend(attention, qkv)
    x = x + fast_linear(mixed, attention.proj.weight, attention.proj.bias)
    hidden = fast_linear_gelu(block.norm2(x), mlp.lin1.weight, mlp.lin1.bias)
    return x + fast_linear(hidden, mlp.lin2.weight, mlp.lin2.bias)
