"""The sampling of deformable attention: compiled loops on a CPU, Triton on CUDA, else PyTorch.

Shapes: B images, Q queries, N cells of all levels, M heads, L levels, P points, D channels per
head.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from possam.model.ops import compiled_sampling


def sample_sum(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """:func:`sample_plain` by the fastest code for the device of ``values``; plain in an export."""
    sample = sample_plain if torch.compiler.is_exporting() else _sampler(values.device)
    return sample(values, offsets, weights, references=references, shapes=shapes)


def sample_plain(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the maps, by PyTorch's ``grid_sample``.

    Args:
        values: (B, N, M, D), of any float type, which the others share.
        offsets: (B, Q, M, L, P, 2), x, y in cells of the level.
        weights: (B, Q, M, L, P).
        references: (Q, 2), x, y in 0..1; gets no gradient.
        shapes: (H, W) of each level.

    Returns:
        (B, Q, M * D).
    """
    batch, _, heads, width = values.shape
    maps = values.split([h * w for h, w in shapes], dim=1)
    centres = (references * 2 - 1)[:, None, None]
    total = values.new_zeros((batch * heads, width, offsets.shape[1]))
    levels = zip(maps, offsets.unbind(3), weights.unbind(3), shapes, strict=True)
    for level_values, offset, weight, (h, w) in levels:
        # Tensors divided by sizes: in an exported graph a tensor of sizes would be a constant.
        x, y = (2 * offset).unbind(-1)
        shift = torch.stack((x / w, y / h), dim=-1)
        samples = F.grid_sample(
            level_values.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w),
            (centres + shift).transpose(1, 2).flatten(0, 1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        total = total + (samples * weight.transpose(1, 2).flatten(0, 1)[:, None]).sum(3)
    return total.view(batch, heads * width, -1).transpose(1, 2)


@torch.compiler.disable
def _sampler(device: torch.device) -> Callable[..., Tensor]:
    """The fastest sampling on ``device``: a function with the arguments of :func:`sample_plain`."""
    if device.type == "cpu":
        return compiled_sampling.sample_sum
    return _triton_sampler(device) or sample_plain


@cache
def _triton_sampler(device: torch.device) -> Callable[..., Tensor] | None:
    try:
        # Triton exists only on Linux, and is needed only here.
        from possam.model.ops import triton_sampling

        triton_sampling.try_out(device)
    except Exception as error:  # its compiler, its driver, CUDA: each has errors of its own
        warnings.warn(
            f"Triton does not run on {device} ({type(error).__name__}: {error}); deformable "
            "attention takes PyTorch's grid_sample, which is slower",
            stacklevel=2,
        )
        return None
    return triton_sampling.sample_sum
