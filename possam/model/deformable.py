"""Multi-scale deformable attention (Deformable DETR).

Shapes: B images, Q queries, N tokens of all levels together, C channels, H W; M heads, L levels,
P points, D channels per head.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from possam.model.ops.attention import softmax_of_short_rows
from possam.model.ops.deformable import sample_sum


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
        """Offsets start as rays, one direction per head, 1..P cells long; weights start equal."""
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
        sites = (self.heads, self.levels, self.points)
        values = self.value_proj(value).unflatten(-1, (self.heads, -1)).float()
        # Sampling places need float32: bfloat16 resolves 1/256 of the image at best.
        offsets = self.sampling_offsets(query).float().unflatten(-1, (*sites, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1))
        weights = softmax_of_short_rows(weights).unflatten(-1, sites[1:])
        return self.output_proj(
            sample_sum(values, offsets, weights, references=references, shapes=shapes)
        )


def reference_points(shapes: Sequence[tuple[int, int]], *, device: torch.device) -> Tensor:
    """Centres of all cells of all levels, (N, 2) x, y in 0..1."""
    points = []
    for height, width in shapes:
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((columns, rows), dim=-1).flatten(0, 1))
    return torch.cat(points)
