"""Sums over the slices of a step that do not depend on how many processes compute it.

Floating-point sums depend on their order. Here the order is that of one binary tree over the
slices' numbers: neighbours are added first, then neighbouring pairs, and so on (what is left over
is added from the right). A process adds what it can within its own block of slices; what remains
are whole branches of the tree, and process 0 goes on with those of all processes. On the CPU the
sum is therefore the same to the last bit for any number of processes. On CUDA, NCCL adds the
processes' sums in an order of its own, which can change the last bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from possam.training.distributed import Place
from possam.training.division import Division


@dataclass(frozen=True)
class _Branch:
    """The sum of the slices ``start <= k < start + size``."""

    start: int
    size: int
    values: list[Tensor]


class TreeSum:
    """Sum of lists of tensors, one a slice; lists that were added are overwritten."""

    def __init__(self) -> None:
        self._branches: list[_Branch] = []

    def add(self, start: int, values: list[Tensor], *, size: int = 1) -> None:
        """Add slice ``start``, or a whole branch of ``size`` slices; in the order of slices."""
        branch = _Branch(start, size, values)
        while self._branches and _siblings(self._branches[-1], branch):
            left = self._branches.pop()
            branch = _Branch(left.start, 2 * left.size, _sum(left.values, branch.values))
        self._branches.append(branch)

    @property
    def branches(self) -> list[_Branch]:
        """What cannot be added further before other slices come."""
        return list(self._branches)

    def total(self) -> list[Tensor]:
        """The sum of everything."""
        *rest, last = self._branches
        values = last.values
        for branch in reversed(rest):
            values = _sum(branch.values, values)
        return values


def _siblings(left: _Branch, right: _Branch) -> bool:
    return (
        left.size == right.size
        and left.start + left.size == right.start
        and left.start % (2 * left.size) == 0
    )


def _sum(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    torch._foreach_add_(left, right)
    return left


def branches_of(slices: range) -> list[tuple[int, int]]:
    """(start, size) of the branches that a process with these slices ends with."""
    found: list[tuple[int, int]] = []
    start = slices.start
    while start < slices.stop:
        size = 1
        while start % (2 * size) == 0 and start + 2 * size <= slices.stop:
            size *= 2
        found.append((start, size))
        start += size
    return found


@torch.no_grad()
def sum_over_processes(own: TreeSum, *, division: Division, place: Place) -> list[Tensor]:
    """The sum over all slices of a step, in every process.

    Args:
        own: the slices of this process; used up. All processes have tensors of the same shapes.
        division: of the step.
        place: this process.
    """
    if place.world_size == 1:
        return own.total()
    if place.device.type == "cuda":
        total = own.total()
        flat = _pack(total)
        place.gather([0])  # over gloo: NCCL would wait minutes for a process that has ended
        with place.exchange():
            dist.all_reduce(flat)
        return _unpack(flat, total)
    into = own.branches[0].values
    shapes = [value.shape for value in into]
    flat = torch.empty(sum(value.numel() for value in into), dtype=torch.float32)
    with place.exchange():
        if place.is_first:
            for rank in range(1, place.world_size):
                for start, size in branches_of(division.of(rank)):
                    received = torch.empty_like(flat)
                    dist.recv(received, src=rank)
                    own.add(start, _views(received, shapes), size=size)
            flat = _pack(own.total())
        else:
            for branch in own.branches:
                dist.send(_pack(branch.values), dst=0)
        dist.broadcast(flat, src=0)
    return _unpack(flat, into)


def _pack(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def _views(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _unpack(flat: Tensor, into: list[Tensor]) -> list[Tensor]:
    """``flat`` in the tensors of ``into``: their memory layout, too, decides later sums' order."""
    torch._foreach_copy_(into, _views(flat, [value.shape for value in into]))
    return into
