"""Multi-scale deformable attention (Deformable DETR): on a CPU by compiled loops
(``compiled_sampling``), on CUDA by Triton (``triton_sampling``), elsewhere with ``grid_sample``.

Shapes: B images, Q queries, N tokens of all levels together, C channels, H W; M heads, L levels,
P points, D channels a head.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.compiled_sampling import sample_sum


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
        weights = self.attention_weights(query).float().view(batch, count, self.heads, -1)
        weights = _softmax(weights).view(offsets.shape[:-1])
        sample = _sampler(values.device)
        return self.output_proj(
            sample(values, offsets, weights, references=references, shapes=shapes)
        )


def _softmax(rows: Tensor) -> Tensor:
    """``rows.softmax(-1)`` of many short rows; on a CPU column by column, many times as fast."""
    if rows.device.type != "cpu":
        return rows.softmax(-1)
    columns = rows.flatten(0, -2).T.contiguous()
    return columns.softmax(0).T.contiguous().view(rows.shape)


@torch.compiler.disable
def _sampler(device: torch.device) -> Callable[..., Tensor]:
    """What samples fastest: a function with the arguments of :func:`sample_with_grids`."""
    if device.type == "cpu":
        return sample_sum
    return _triton_sampler(device) or sample_with_grids


@cache
def _triton_sampler(device: torch.device) -> Callable[..., Tensor] | None:
    try:
        # Triton is there on Linux alone, and only needed here.
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


def sample_with_grids(
    values: Tensor,
    offsets: Tensor,
    weights: Tensor,
    *,
    references: Tensor,
    shapes: Sequence[tuple[int, int]],
) -> Tensor:
    """As :func:`~possam.model.ops.compiled_sampling.sample_sum`, by PyTorch's ``grid_sample``."""
    batch, _, heads, width = values.shape
    maps = values.split([h * w for h, w in shapes], dim=1)
    centres = (references * 2 - 1)[:, None, None]
    total = values.new_zeros((batch * heads, width, offsets.shape[1]))
    levels = zip(maps, offsets.unbind(3), weights.unbind(3), shapes, strict=True)
    for level_values, offset, weight, (h, w) in levels:
        cell = centres.new_tensor((2 / w, 2 / h))
        samples = F.grid_sample(
            level_values.permute(0, 2, 3, 1).reshape(batch * heads, width, h, w),
            torch.addcmul(centres, offset, cell).transpose(1, 2).flatten(0, 1),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        total = total + (samples * weight.transpose(1, 2).flatten(0, 1)[:, None]).sum(3)
    return total.view(batch, heads * width, -1).transpose(1, 2)


def reference_points(shapes: Sequence[tuple[int, int]], *, device: torch.device) -> Tensor:
    """Centres of all cells of all levels, (N, 2) x, y in 0..1."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns, rows), dim=-1).flatten(0, 1))
    return torch.cat(points)
