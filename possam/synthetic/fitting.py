"""What both tower trainings share: their loop, averaged weights, one thread for exact repeats."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from possam.runtime.errors import TrainingError
from possam.runtime.progress import Progress


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


def fit(
    model: nn.Module,
    loss: Callable[[], tuple[Tensor, float]],
    groups: list[dict[str, Any]],
    *,
    parameters: list[nn.Parameter],
    iterations: int,
    weight_decay: float,
    warmup: float,
    average: float,
    label: str,
    measured: str,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train ``model``, which has the averaged weights in the end.

    Learning rates rise over the share ``warmup`` of the iterations (at least 2) and fall to zero as
    a cosine.

    Args:
        model: whose weights are averaged.
        loss: loss of the next batch, and a quality in 0..1 that progress shows as ``measured``.
        groups: parameters with their highest learning rate (``params``, ``lr``).
        parameters: those whose gradients are clipped together, to a norm of 1.
        average: decay of the average.
        after_step: called after each step of the optimizer.

    Raises:
        TrainingError: a loss is not finite.
    """
    optimizer = torch.optim.AdamW(groups, weight_decay=weight_decay, betas=(0.9, 0.98))
    schedule = OneCycleLR(
        optimizer, [group["lr"] for group in groups], iterations,
        pct_start=max(warmup, 2 / iterations), cycle_momentum=False,
    )  # fmt: skip
    averaged, quality = WeightAverage(model, decay=average), 0.0
    with Progress(iterations, label=label) as progress:
        for _ in range(iterations):
            value, share = loss()
            if not torch.isfinite(value):
                raise TrainingError(f"{label}: the loss is not finite; lower the learning rate")
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            after_step()
            averaged.update(model)
            quality += 0.02 * (share - quality)
            progress.update(note=f"loss {value.item():.3f}, {measured} {quality:.3f}")
    averaged.copy_to(model)
