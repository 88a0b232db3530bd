"""What both tower trainings share: scenes as tensors, the loop, one thread for exact repeats."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from possam.runtime.errors import TrainingError
from possam.runtime.progress import Progress
from possam.synthetic.scenes import Scene, Split, render_scenes
from possam.synthetic.vocabulary import Domain


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Settings of a training with :func:`fit`; ``scenes``: number of scenes that are rendered."""

    scenes: int = 10_000
    iterations: int
    batch: int
    weight_decay: float = 0.05
    warmup: float
    average: float = 0.995


@dataclass(frozen=True, kw_only=True)
class SceneSet:
    """N scenes: ``images`` uint8 (N, 3, H, W), ``ids`` uint8 (N, H, W), ``classes`` int64 (N, M).

    ``classes[n, k]`` is the world class of segment ``k + 1`` of scene n, -1 beyond its last
    segment. ``shaded`` bool (N, H, W) marks the shaded part of each segment.
    """

    images: Tensor
    ids: Tensor
    shaded: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rng: np.random.Generator, count: int, *, flips: tuple[int, ...]) -> "SceneSet":
        """Random scenes, with float images, mirrored at random along ``flips``."""
        rows = torch.from_numpy(rng.integers(len(self), size=count))
        maps = [self.images[rows].float(), self.ids[rows], self.shaded[rows]]
        for axis in flips:
            if rng.random() < 0.5:
                maps = [each.flip(axis) for each in maps]
        images, ids, shaded = maps
        return SceneSet(images=images, ids=ids, shaded=shaded, classes=self.classes[rows])


def pack_scenes(scenes: list[Scene]) -> SceneSet:
    """Stack scenes, all of one size, into a :class:`SceneSet`."""
    most = max(len(scene.segments) for scene in scenes)
    classes = torch.full((len(scenes), most), -1, dtype=torch.int64)
    for row, scene in zip(classes, scenes, strict=True):
        row[: len(scene.segments)] = torch.tensor([s.class_index for s in scene.segments])
    images = torch.from_numpy(np.stack([scene.image.transpose(2, 0, 1) for scene in scenes]))
    ids = torch.from_numpy(np.stack([scene.ids for scene in scenes]))
    shaded = torch.from_numpy(np.stack([scene.shaded for scene in scenes]))
    return SceneSet(images=images, ids=ids, shaded=shaded, classes=classes)


def render_scene_set(count: int, *, domain: Domain, split: Split = "train", seed: int) -> SceneSet:
    """Render and pack ``count`` scenes (see :func:`possam.synthetic.scenes.render_scenes`)."""
    return pack_scenes(render_scenes(count, domain=domain, split=split, seed=seed))


def segment_masks(ids: Tensor, count: int) -> Tensor:
    """Binary masks of segments 1 to ``count``: ids (B, H, W) -> float (B, count, H, W)."""
    numbers = torch.arange(1, count + 1, dtype=ids.dtype, device=ids.device)
    return (ids[:, None] == numbers[:, None, None]).float()


class WeightAverage:
    """Exponential moving average of a module's floating-point state.

    The decay starts low (``(1 + n) / (10 + n)``), so that the random start is forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self._decay, self._count = decay, 0
        self._state = {key: value.clone() for key, value in module.state_dict().items()}

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


def half(module: nn.Module) -> dict[str, Tensor]:
    """A module's state dict in fp16."""
    return {key: value.half().contiguous() for key, value in module.state_dict().items()}


def fit(
    model: nn.Module,
    loss: Callable[[], tuple[Tensor, float]],
    groups: list[dict[str, Any]],
    *,
    parameters: list[nn.Parameter],
    settings: FitSettings,
    label: str,
    measured: str,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Train ``model``; at the end it has the moving average of its weights (decay ``average``).

    Learning rates rise over the share ``warmup`` of the iterations (at least 2), then fall to
    almost zero, both along a cosine.

    Args:
        loss: returns the next batch's loss and a quality in 0..1, shown in the progress line.
        groups: parameters with their highest learning rate (``params``, ``lr``).
        parameters: those whose gradients are clipped together, to a norm of 1.
        label, measured: names of the training and of the quality in the progress line.
        after_step: called after each step of the optimizer.

    Raises:
        TrainingError: a loss is not finite.
    """
    iterations, rates = settings.iterations, [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, betas=(0.9, 0.98))
    schedule = OneCycleLR(
        optimizer, rates, iterations, pct_start=max(settings.warmup, 2 / iterations),
        cycle_momentum=False,
    )  # fmt: skip
    averaged, quality = WeightAverage(model, decay=settings.average), 0.0
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
