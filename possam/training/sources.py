"""Where training batches come from: here cached features (``live_source``: encoded images).

The images of a step, their order and their augmentation are pure functions of (seed, step), so that
a resumed run sees exactly what an uninterrupted one would have seen. A process reads only the
images of its own micro-batches.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from possam.datasets.format import ConvertedDataset
from possam.runtime.errors import InputError
from possam.runtime.progress import track
from possam.training.distributed import TrainingProcess
from possam.training.feature_cache import CachedFeatures
from possam.training.options import TrainingOptions
from possam.training.sharding import BatchSharding
from possam.training.targets import Batch, Target, derive_seed, target_from_ids


class Source(Protocol):
    """What the loop needs from a source of batches."""

    num_classes: int
    sharding: BatchSharding

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """This process's micro-batches of each of the steps ``start <= step < stop``, in order."""
        ...


class SampleOrder:
    """Epoch after epoch of shuffled images; one step may hold images of two epochs."""

    def __init__(self, num_images: int, *, seed: int) -> None:
        if num_images < 1:
            raise InputError("the training data set has no images")
        self.num_images, self.seed = num_images, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def index(self, sample: int) -> int:
        """Image of sample number p: the (p mod images)-th of its epoch."""
        epoch, offset = divmod(sample, self.num_images)
        if epoch != self._epoch:
            generator = np.random.default_rng(derive_seed("order", self.seed, epoch))
            self._permutation = generator.permutation(self.num_images)
            self._epoch = epoch
        return int(self._permutation[offset])

    def indices(self, samples: Iterable[int]) -> list[int]:
        """Images of several sample numbers."""
        return [self.index(sample) for sample in samples]


class CachedSource:
    """Batches from feature caches; the masks are kept as id maps at image resolution."""

    def __init__(
        self,
        *,
        sam: CachedFeatures | None,
        clip: CachedFeatures,
        dataset: ConvertedDataset,
        training: TrainingOptions,
        process: TrainingProcess,
        seed: int,
    ) -> None:
        """Check that the caches belong together, and load the targets of the whole data set.

        Args:
            sam: SAM's map, from which masks are made; ``None``: they are made from CLIP's stages.
            clip: CLIP's stages, finest first; the last is its dense map.
            seed: of the images' order and mirroring.

        Raises:
            InputError: caches of other sizes than the data set, augmentation ``lsj``, or ``flip``
                with a cache that lacks mirrored images.
        """
        policy = training.augmentation.policy
        for cache in (clip,) if sam is None else (sam, clip):
            if len(cache) != len(dataset) or cache.image_size != clip.image_size:
                raise InputError(
                    f"{cache.path}: {len(cache)} images of {cache.image_size}, but the data set "
                    f"has {len(dataset)} and {clip.path} is of {clip.image_size}"
                )
            if policy == "flip" and not cache.flipped:
                raise InputError(
                    f"{cache.path}: no mirrored images are cached, so augmentation.policy 'flip' "
                    "cannot be used; use 'none' or build the cache with flips"
                )
        if policy == "lsj":
            raise InputError("augmentation.policy 'lsj' cannot be used with cached features")
        self.num_classes = len(dataset.categories)
        self.sharding = BatchSharding.of(training, process)
        self._sam, self._clip = sam, clip
        self._flip, self._seed = policy == "flip", seed
        self._order = SampleOrder(len(dataset), seed=seed)
        self._ids, self._labels = _load_targets(
            dataset, clip.image_size, quiet=not process.is_first
        )

    def target(self, index: int, *, mirrored: bool = False) -> Target:
        """Masks and labels of one image, at image resolution."""
        ids = self._ids[index, :, ::-1] if mirrored else self._ids[index]
        return target_from_ids(ids, list(enumerate(self._labels[index], start=1)))

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """This process's micro-batches of the steps ``start <= step < stop``, on the CPU."""
        for step in range(start, stop):
            yield [self._batch(self.sharding.samples(step, index)) for index in self.sharding.own]

    def _batch(self, samples: range) -> Batch:
        indices = self._order.indices(samples)
        mirrored = [self._mirrored(sample) for sample in samples]
        if self._sam is None:
            backbone = self._clip.read(indices, mirrored)
            dense = backbone[-1]
        else:
            backbone = self._sam.read(indices, mirrored)
            (dense,) = self._clip.read(indices, mirrored, maps=slice(-1, None))
        return Batch(
            backbone=backbone,
            clip_features=dense,
            targets=[
                self.target(index, mirrored=mirror)
                for index, mirror in zip(indices, mirrored, strict=True)
            ],
            indices=indices,
        )

    def _mirrored(self, sample: int) -> bool:
        return self._flip and random.Random(derive_seed("flip", self._seed, sample)).random() < 0.5


def _load_targets(
    dataset: ConvertedDataset, size: tuple[int, int], *, quiet: bool
) -> tuple[np.ndarray, list[list[int]]]:
    """Maps (images, H, W) uint8 or uint16: 0 void, 1.. segments but crowds; and their labels."""
    kept = [[s for s in record.segments if not s.is_crowd] for record in dataset.images]
    most = max(map(len, kept))
    ids = np.zeros((len(dataset), *size), dtype=np.uint8 if most < 256 else np.uint16)
    numbers: Iterable[int] = range(len(dataset))
    if not quiet:
        numbers = track(numbers, total=len(dataset), label="targets", unit="images")
    for index in numbers:
        panoptic = dataset.panoptic(index)
        for number, segment in enumerate(kept[index], start=1):
            ids[index][panoptic == segment.id] = number
    return ids, [[segment.category for segment in own] for own in kept]
