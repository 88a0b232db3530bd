"""Run with ``TRITON_INTERPRET=1``: Triton's kernels, interpreted, against ``grid_sample``.

It runs in a process of its own, because Triton reads the variable when it is imported. Prints the
largest differences as JSON.
"""

import json

import torch
from torch import Tensor

from possam.model.ops import deformable, triton_sampling
from possam.model.ops.deformable import sample_plain
from possam.model.pixel_decoder import DeformableAttention, reference_points

CPU = torch.device("cpu")
CASES = {
    "levels": {"shapes": [(2, 3), (5, 4)], "heads": 2, "points": 3, "channels": 4, "reach": 0.4},
    "odd sizes, far outside": {
        "shapes": [(1, 1), (1, 7)],
        "heads": 1,
        "points": 1,
        "channels": 5,
        "reach": 50.0,
    },
    "more queries than a block": {
        "shapes": [(6, 7)],
        "heads": 3,
        "points": 2,
        "channels": 2,
        "reach": 2.0,
    },
}


def _draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sampled(
    shapes: list[tuple[int, int]], heads: int, points: int, channels: int, reach: float
) -> dict[str, float]:
    """Differences of the sum and of its derivatives."""
    places = reference_points(shapes, device=CPU)
    cells, levels = len(places), len(shapes)
    values = _draw(2, cells, heads, channels, seed=1)
    offsets = _draw(2, cells, heads, levels, points, 2, seed=2) * reach
    weights = _draw(2, cells, heads, levels, points, seed=3)
    found = []
    for own in (True, False):
        leaves = [part.clone().requires_grad_() for part in (values, offsets, weights)]
        if own:
            out = triton_sampling.sample_sum(*leaves, references=places, shapes=shapes)
        else:
            out = sample_plain(*leaves, references=places, shapes=shapes)
        out.backward(_draw(*out.shape, seed=4))
        found.append([out.detach(), *(leaf.grad for leaf in leaves)])
    names = ("sum", "values", "offsets", "weights")
    return {
        name: float((mine - yours).abs().max())
        for name, mine, yours in zip(names, *found, strict=True)
    }


def attended() -> dict[str, float]:
    """Differences of a layer that is given Triton's sampler, as on CUDA."""
    shapes = [(2, 3), (4, 5)]
    places = reference_points(shapes, device=CPU)
    layer = DeformableAttention(channels=8, heads=2, levels=2, points=2)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = 0.3 * _draw(*parameter.shape, seed=number)
    found = []
    for sampler in (triton_sampling.sample_sum, sample_plain):
        deformable._sampler = lambda device, chosen=sampler: chosen  # type: ignore[assignment, misc]
        tokens = _draw(2, len(places), 8, seed=20).requires_grad_()
        out = layer(tokens, tokens, references=places, shapes=shapes)
        out.square().sum().backward()
        found.append((out.detach(), tokens.grad))
    (mine, d_mine), (yours, d_yours) = found
    return {
        "layer": float((mine - yours).abs().max()),
        "tokens": float((d_mine - d_yours).abs().max()),
    }


if __name__ == "__main__":
    triton_sampling.try_out(CPU)
    results = {name: sampled(**case) for name, case in CASES.items()}  # type: ignore[arg-type]
    print(json.dumps({**results, "attention": attended()}))
