"""Multi-scale deformable attention (Deformable DETR): with ``grid_sample``; on a CPU without
gradients as weighted sums of rows (``row_sampling``); on CUDA by Triton (``triton_sampling``).

Shapes: B images, Q queries, N tokens of all levels together, C channels, H W; M heads, L levels,
P points.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from possam.model.row_sampling import sum_rows

_KEPT_BYTES = 32 * 2**20
"""Samples of one level up to this size are kept for the backward pass."""


class DeformableAttention(nn.Module):
    """Each query samples ``points`` places on each level, and sums them with its own weights."""

    def __init__(self, *, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Offsets start as rays, one direction a head, 1..P cells long; weights start equal."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        ray = torch.stack((angle.cos(), angle.sin()), dim=-1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        length = torch.arange(1, self.points + 1)
        rays = ray[:, None, None] * length[:, None]
        self.sampling_offsets.bias.copy_(rays.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        *,
        references: Tensor,
        shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C), with positions added.
            value: (B, N, C), the levels' maps one after another, rows first.
            references: (Q, 2) x, y in 0..1 of the image.
            shapes: (H, W) of each level.

        Returns:
            (B, Q, C).
        """
        batch, count, _ = query.shape
        values = self.value_proj(value).unflatten(-1, (self.heads, -1)).float()
        # Sampling places need float32: bfloat16 resolves 1/256 of the image at best.
        offsets = self.sampling_offsets(query).float()
        offsets = offsets.view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).float()
        trained = values.requires_grad or offsets.requires_grad
        if (sample := _row_sampler(values.device, trained=trained)) is not None:
            weights = weights.view(batch, count, self.heads, -1).softmax(-1)
            weights = weights.view(offsets.shape[:-1])
            return self.output_proj(
                sample(values, offsets, weights, references=references, shapes=shapes)
            )
        # With the queries innermost, the softmax and the weighted sums run over whole rows.
        weights = weights.transpose(1, 2).reshape(batch, self.heads, -1, count).softmax(2)
        sampled = sample_levels(
            values,
            # As complex numbers, for pairs are moved faster than single numbers.
            torch.view_as_real(torch.view_as_complex(offsets).permute(3, 0, 2, 4, 1).contiguous()),
            weights.view(batch, self.heads, self.levels, self.points, count).movedim(2, 0),
            references=references,
            shapes=shapes,
        )
        return self.output_proj(sampled)


@torch.compiler.disable
def _row_sampler(device: torch.device, *, trained: bool) -> Callable[..., Tensor] | None:
    """What samples fastest from rows of channels (see :func:`~possam.model.row_sampling.sum_rows`),
    or None where ``grid_sample`` serves best: in training on a CPU, and without Triton.
    """
    if device.type == "cpu":
        return None if trained else sum_rows
    return _triton_sampler(device)


@cache
def _triton_sampler(device: torch.device) -> Callable[..., Tensor] | None:
    try:
        # Triton is there on Linux alone, and only needed here.
        from possam.model import triton_sampling

        triton_sampling.try_out(device)
    except Exception as error:  # its compiler, its driver, CUDA: each has errors of its own
        warnings.warn(
            f"Triton does not run on {device} ({type(error).__name__}: {error}); deformable "
            "attention takes PyTorch's grid_sample, which is slower",
            stacklevel=2,
        )
        return None
    return triton_sampling.sample_sum


def sample_levels(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """Weighted sum of bilinear samples, zero outside the maps.

    Args:
        values: (B, N, M, C / M) float32.
        offsets: (L, B, M, P, Q, 2) x, y in cells of the level.
        weights: (L, B, M, P, Q).
        references: (Q, 2) x, y in 0..1.
        shapes: (H, W) of each level.

    Returns:
        (B, Q, C) float32.
    """
    batch, _, heads, width = values.shape
    maps = values.split([h * w for h, w in shapes], dim=1)
    centres = references * 2 - 1
    parts = []
    levels = zip(maps, offsets.unbind(0), weights.unbind(0), shapes, strict=True)
    for level_values, offset, weight, (h, w) in levels:
        cell = centres.new_tensor((2 / w, 2 / h))
        parts.append(
            SampleSum.apply(
                level_values.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w),
                torch.addcmul(centres, offset, cell).flatten(0, 1),
                weight.flatten(0, 1),
            )
        )
    return sum(parts[1:], start=parts[0]).view(batch, heads * width, -1).transpose(1, 2)


class SampleSum(torch.autograd.Function):
    """Samples of maps (G, D, H, W) at grids (G, P, Q, 2), weighted (G, P, Q), summed over P.

    The samples are P times as large as the result. Small ones are kept for the backward pass, large
    ones drawn again; on CPU, for a few maps at a time, so that they stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, grids: Tensor, weights: Tensor) -> Tensor:
        out = maps.new_empty((len(maps), maps.shape[1], grids.shape[2]))
        size = out.numel() * grids.shape[1] * out.element_size()
        kept = []
        for part in _parts(maps, grids):
            samples = _sample(maps[part], grids[part])
            if size <= _KEPT_BYTES:
                kept.append(samples)
                samples = samples * weights[part, None]
            else:
                samples.mul_(weights[part, None])
            out[part] = samples.sum(2)
        ctx.save_for_backward(maps, grids, weights, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps, grids, weights, *kept = ctx.saved_tensors
        d_maps, d_grids = torch.empty_like(maps), torch.empty_like(grids)
        d_weights = torch.empty_like(weights)
        for number, part in enumerate(_parts(maps, grids)):
            outer = gradient[part, :, None]
            again = not kept
            samples = _sample(maps[part], grids[part]) if again else kept[number]
            product = samples.mul_(outer) if again else samples * outer
            d_weights[part] = product.sum(1)
            torch.mul(outer, weights[part, None], out=product)
            # 0, 0, False: bilinear, zeros outside, cell centres at half-integers.
            d_maps[part], d_grids[part] = torch.ops.aten.grid_sampler_2d_backward(
                product, maps[part], grids[part], 0, 0, False, [True, True]
            )
        return d_maps, d_grids, d_weights


def _parts(maps: Tensor, grids: Tensor) -> list[slice]:
    """Slices of the first dimension: all of it, or on CPU about a million samples each."""
    count = len(maps)
    step = count
    if maps.device.type == "cpu":
        samples = maps.shape[1] * grids.shape[1] * grids.shape[2]
        step = max(1, 2**20 // samples)
    return [slice(start, start + step) for start in range(0, count, step)]


def _sample(maps: Tensor, grids: Tensor) -> Tensor:
    return F.grid_sample(maps, grids, mode="bilinear", padding_mode="zeros", align_corners=False)


def reference_points(shapes: Sequence[tuple[int, int]], *, device: torch.device) -> Tensor:
    """Centres of all cells of all levels, (N, 2) x, y in 0..1."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns, rows), dim=-1).flatten(0, 1))
    return torch.cat(points)
