"""A step's batch, split into micro-batches that ranks share; and the sum of their gradients.

A micro-batch is what one forward pass takes, ``training.micro_batch`` images. What it holds and the
random numbers that it draws depend only on its number, not on the rank that computes it, and
gradients are summed in one fixed order. So the result is the same for any number of processes.

That order is a binary tree over the numbers of a step's micro-batches: neighbours are added first,
then neighbouring pairs, and so on (left-over branches are added from the right). A rank adds what
it can within its own block, and rank 0 adds the remaining branches of all ranks. On a CPU the sum
is the same to the last bit; on CUDA, NCCL adds the ranks' sums in an order of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from possam.runtime.errors import InputError
from possam.training.distributed import TrainingProcess
from possam.training.options import TrainingOptions


@dataclass(frozen=True, kw_only=True)
class BatchSharding:
    """The micro-batches of every step, and which of them one rank computes.

    Attributes:
        batch_size: images per step, over all ranks.
        micro_batch: images per micro-batch.
    """

    batch_size: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Raise an InputError unless micro-batches and ranks divide the batch equally."""
        if self.batch_size % self.micro_batch:
            raise InputError(
                f"training.batch_size {self.batch_size} is no multiple of training.micro_batch "
                f"{self.micro_batch}"
            )
        count = self.micro_batches
        if count % self.world_size:
            valid = [str(n) for n in range(1, count + 1) if count % n == 0]
            raise InputError(
                f"training.batch_size {self.batch_size} with training.micro_batch "
                f"{self.micro_batch} makes {count} micro-batches per step, which "
                f"{self.world_size} processes cannot share equally; valid numbers of processes: "
                f"{', '.join(valid)}"
            )

    @classmethod
    def of(cls, training: TrainingOptions, process: TrainingProcess) -> "BatchSharding":
        """The sharding of a recipe as ``process`` sees it; raises as the constructor."""
        return cls(
            batch_size=training.batch_size,
            micro_batch=training.micro_batch,
            rank=process.rank,
            world_size=process.world_size,
        )

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step, over all ranks."""
        return self.batch_size // self.micro_batch

    @property
    def own(self) -> range:
        """The micro-batches of a step that this rank computes, within 0..micro_batches-1."""
        return self.shard(self.rank)

    def shard(self, rank: int) -> range:
        """The micro-batches of a step that ``rank`` computes, a contiguous block."""
        share = self.micro_batches // self.world_size
        return range(rank * share, (rank + 1) * share)

    def number(self, step: int, index: int) -> int:
        """Running number of micro-batch ``index`` of a step, over the whole run."""
        return step * self.micro_batches + index

    def samples(self, step: int, index: int) -> range:
        """Running numbers of the samples in micro-batch ``index`` of a step."""
        first = self.number(step, index) * self.micro_batch
        return range(first, first + self.micro_batch)


@dataclass(frozen=True)
class _Branch:
    """The sum of the micro-batches ``start <= k < start + size``."""

    start: int
    size: int
    values: list[Tensor]


class TreeSum:
    """Sum of lists of tensors, one list per micro-batch; the lists given to it are overwritten."""

    def __init__(self) -> None:
        self.branches: list[_Branch] = []
        """Sums that wait for later micro-batches before they can be added to each other."""

    def add(self, start: int, values: list[Tensor], *, size: int = 1) -> None:
        """Add micro-batch ``start``, or a branch of ``size`` of them, in ascending order."""
        branch = _Branch(start, size, values)
        while self.branches and _siblings(self.branches[-1], branch):
            left = self.branches.pop()
            torch._foreach_add_(left.values, branch.values)
            branch = _Branch(left.start, 2 * left.size, left.values)
        self.branches.append(branch)

    def total(self) -> list[Tensor]:
        """The sum of everything."""
        *rest, last = self.branches
        values = last.values
        for branch in reversed(rest):
            torch._foreach_add_(branch.values, values)
            values = branch.values
        return values


def _siblings(left: _Branch, right: _Branch) -> bool:
    neighbours = left.size == right.size and left.start + left.size == right.start
    return neighbours and left.start % (2 * left.size) == 0


def branches_of(shard: range) -> list[tuple[int, int]]:
    """(start, size) of the branches that are left when a rank has added its micro-batches."""
    found: list[tuple[int, int]] = []
    start = shard.start
    while start < shard.stop:
        size = 1
        while start % (2 * size) == 0 and start + 2 * size <= shard.stop:
            size *= 2
        found.append((start, size))
        start += size
    return found


@torch.no_grad()
def sum_over_ranks(
    own: TreeSum, *, sharding: BatchSharding, process: TrainingProcess
) -> list[Tensor]:
    """The sum over all micro-batches of a step, in every rank.

    ``own``: this rank's sum, overwritten; its tensors have the same shapes in all ranks.
    """
    if process.world_size == 1:
        return own.total()
    if process.device.type == "cuda":
        total = own.total()
        flat = _pack(total)
        process.gather([0])  # over gloo: NCCL would wait minutes for a process that has ended
        with process.exchange():
            dist.all_reduce(flat)
        return _unpack(flat, total)
    into = own.branches[0].values
    flat = torch.empty(sum(value.numel() for value in into), dtype=torch.float32)
    with process.exchange():
        if process.is_first:
            for rank in range(1, process.world_size):
                for start, size in branches_of(sharding.shard(rank)):
                    received = torch.empty_like(flat)
                    dist.recv(received, src=rank)
                    own.add(start, _views(received, into), size=size)
            flat = _pack(own.total())
        else:
            for branch in own.branches:
                dist.send(_pack(branch.values), dst=0)
        dist.broadcast(flat, src=0)
    return _unpack(flat, into)


def _pack(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([value.reshape(-1) for value in values])


def _views(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([value.numel() for value in like])
    return [part.view(value.shape) for part, value in zip(parts, like, strict=True)]


def _unpack(flat: Tensor, into: list[Tensor]) -> list[Tensor]:
    """Copy ``flat`` into ``into``, whose tensors' memory layout fixes the order of later sums."""
    torch._foreach_copy_(into, _views(flat, into))
    return into
