"""How the images of a step are divided: into slices, and the slices among the processes.

A slice is what one forward pass takes, ``training.micro_batch`` images. What a slice holds and the
random numbers that it draws depend on its number alone, never on who computes it, so that any
number of processes trains the same.
"""

from dataclasses import dataclass

from possam.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Division:
    """The slices of every step, and those of one process.

    Attributes:
        batch_size: images of a step, over all processes.
        micro_batch: images of a slice.
        rank, world_size: of the process.
    """

    batch_size: int
    micro_batch: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        """Refuse what would train with another batch size than the recipe's.

        Raises:
            InputError: the batch has no whole number of slices, or the slices cannot be shared
                equally.
        """
        if self.batch_size % self.micro_batch:
            raise InputError(
                f"training.batch_size {self.batch_size} is no multiple of training.micro_batch "
                f"{self.micro_batch}"
            )
        if self.slices % self.world_size:
            valid = [str(n) for n in range(1, self.slices + 1) if self.slices % n == 0]
            raise InputError(
                f"training.batch_size {self.batch_size} with training.micro_batch "
                f"{self.micro_batch} makes {self.slices} slices a step, which {self.world_size} "
                f"processes cannot share equally; valid numbers of processes: {', '.join(valid)}"
            )

    @property
    def slices(self) -> int:
        """Slices of a step, over all processes."""
        return self.batch_size // self.micro_batch

    @property
    def own(self) -> range:
        """Slices of a step that this process computes."""
        return self.of(self.rank)

    def of(self, rank: int) -> range:
        """Slices of a step that process ``rank`` computes, a contiguous block."""
        share = self.slices // self.world_size
        return range(rank * share, (rank + 1) * share)

    def number(self, step: int, part: int) -> int:
        """Running number of slice ``part`` (0..slices-1) of a step, over the whole run."""
        return step * self.slices + part

    def positions(self, step: int, part: int) -> range:
        """Sample numbers of slice ``part`` of a step."""
        first = self.number(step, part) * self.micro_batch
        return range(first, first + self.micro_batch)
