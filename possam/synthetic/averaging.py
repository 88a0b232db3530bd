"""What both tower trainings share: the schedule, averaged weights, and one CPU thread for exact
repeats.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR


class WeightAverage:
    """Exponential moving average of a module's floating-point state.

    The decay starts low (``(1 + n) / (10 + n)``), so that the random start is forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay = decay
        self._count = 0
        self._state: dict[str, Tensor] = {
            key: value.detach().clone() for key, value in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present weights."""
        self._count += 1
        decay = min(self._decay, (1 + self._count) / (10 + self._count))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self._state[key].lerp_(value, 1 - decay)
            else:
                self._state[key].copy_(value)

    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        module.load_state_dict(self._state)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one CPU thread: sums are then always taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_cycle(
    optimizer: torch.optim.Optimizer, peaks: list[float], *, iterations: int, warmup: float
) -> OneCycleLR:
    """Learning rates that rise over the share ``warmup`` of ``iterations`` (at least 2 each) and
    fall to zero as a cosine.

    ``peaks``: the highest rate of each parameter group.
    """
    return OneCycleLR(
        optimizer, peaks, iterations, pct_start=max(warmup, 2 / iterations), cycle_momentum=False
    )
