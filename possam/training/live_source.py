"""Training batches from augmented images that the frozen towers encode as they come.

Images are read by worker processes that live as long as the training. They fork from a small server
process, never from this one, whose CUDA and network threads a fork would break, and share one
compact table of the images' records.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Sampler

from possam.datasets.format import ConvertedDataset
from possam.datasets.loader import Sample, SegmentationDataset, collate
from possam.datasets.options import AugmentationOptions
from possam.training.compact import CompactRecords
from possam.training.division import Division
from possam.training.sources import SampleOrder
from possam.training.targets import Batch, Target

Encode = Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]]
"""(B, 3, H, W) float32 RGB in 0..255 -> the backbone's maps and CLIP's dense map, over H x W padded
at the bottom and right (``Segmenter.features``)."""


class _Keys(Sampler[list[tuple[int, int]]]):
    """The (step, image) pairs of each own slice, made as they are needed."""

    def __init__(self, order: SampleOrder, division: Division, start: int, stop: int) -> None:
        self._order, self._division, self._steps = order, division, range(start, stop)

    def __len__(self) -> int:
        return len(self._steps) * len(self._division.own)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            for part in self._division.own:
                positions = self._division.positions(step, part)
                yield [(step, index) for index in self._order.indices(positions)]


class LiveSource:
    """Batches of augmented images that the frozen towers encode as they come."""

    def __init__(
        self,
        *,
        dataset: ConvertedDataset,
        encode: Encode,
        multiple: int,
        augmentation: AugmentationOptions,
        division: Division,
        seed: int,
        workers: int,
        device: torch.device | str,
    ) -> None:
        """Set up reading and encoding.

        Args:
            dataset: a converted data set.
            encode: the towers, on ``device``.
            multiple: ``encode`` pads both sides to multiples of it; the masks are padded likewise.
            augmentation: drawn anew for every (step, image).
            division: of the steps.
            seed: of the order and the augmentation.
            workers: processes that read images (0: none), for this process alone.
            device: where images are encoded.
        """
        self.num_images, self.num_classes = len(dataset), len(dataset.categories)
        self.division, self._order = division, SampleOrder(len(dataset), seed=seed)
        compact = replace(dataset, images=CompactRecords(dataset.images))
        self._samples = SegmentationDataset(compact, augmentation=augmentation, seed=seed)
        self._encode, self._multiple = encode, multiple
        self._workers, self._device = workers, torch.device(device)

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The own slices of the steps ``start <= step < stop``, on the source's device."""
        context = None
        if self._workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([SegmentationDataset.__module__])
        loader = DataLoader(
            self._samples,
            batch_sampler=_Keys(self._order, self.division, start, stop),
            num_workers=self._workers,
            multiprocessing_context=context,
            collate_fn=collate,
            # its own, so that iterating does not draw from the global one
            generator=torch.Generator(),
        )
        slices = len(self.division.own)
        step: list[Batch] = []
        for samples in loader:
            step.append(self._batch(samples))
            if len(step) == slices:
                yield step
                step = []

    @torch.no_grad()
    def _batch(self, samples: list[Sample]) -> Batch:
        height = max(sample.image.shape[1] for sample in samples)
        width = max(sample.image.shape[2] for sample in samples)
        images = torch.stack([_pad(sample.image, height, width) for sample in samples])
        full = [-(-side // self._multiple) * self._multiple for side in (height, width)]
        backbone, clip = self._encode(images.to(self._device).float())
        return Batch(
            backbone=tuple(level.float() for level in backbone),
            clip_features=clip.float(),
            targets=[
                Target(masks=_pad(sample.masks, *full), labels=sample.labels).to(self._device)
                for sample in samples
            ],
            indices=[sample.index for sample in samples],
        )


def _pad(block: Tensor, height: int, width: int) -> Tensor:
    """(..., h, w) -> (..., height, width), zeros at the bottom and right."""
    return pad(block, (0, width - block.shape[-1], 0, height - block.shape[-2]))
