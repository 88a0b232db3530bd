"""Training batches from augmented images, which the frozen towers encode step by step.

Images are read by worker processes that live as long as the training. They fork from a small server
process, never from this one, whose CUDA and network threads a fork would break, and share one
compact table of the images' records.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Sampler

from possam.datasets.format import ConvertedDataset, ImageRecord
from possam.datasets.loader import Sample, SegmentationDataset, collate
from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.sam import SamEncoder
from possam.model.options import Colour, Precision
from possam.model.resolution import pad_image
from possam.model.segmenter import TowerFeatures
from possam.runtime.pools import fork_server, usable
from possam.training.distributed import TrainingProcess
from possam.training.memory import hold_in_bfloat16
from possam.training.options import TrainingOptions
from possam.training.sharding import BatchSharding
from possam.training.sources import SampleOrder
from possam.training.targets import Batch, Target, send

Encode = Callable[[Tensor], tuple[tuple[Tensor, ...], Tensor]]
"""(B, 3, H, W) float32 RGB in 0..255 -> the backbone's maps and CLIP's dense map, of H x W padded
at the bottom and right (``Segmenter.features``)."""


class CompactRecords(Sequence[ImageRecord]):
    """Image records as bytes in one tensor; each is unpickled when it is read.

    Hundreds of thousands of records with a dozen segments each are gigabytes of Python objects, and
    every worker process would get its own copy of them. Tensors lie in memory that workers share.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        blobs = [pickle.dumps(record, pickle.HIGHEST_PROTOCOL) for record in records]
        self._starts = torch.tensor([0, *accumulate(map(len, blobs))], dtype=torch.int64)
        self._bytes = torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        numbers = range(len(self))[index]  # raises the IndexError
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        start, stop = self._starts[numbers : numbers + 2].tolist()
        record: ImageRecord = pickle.loads(self._bytes[start:stop].numpy().tobytes())
        return record


class _Keys(Sampler[list[tuple[int, int]]]):
    """The (step, image) pairs of each micro-batch of this process, made when needed."""

    def __init__(self, order: SampleOrder, sharding: BatchSharding, start: int, stop: int) -> None:
        self._order, self._sharding, self._steps = order, sharding, range(start, stop)

    def __len__(self) -> int:
        return len(self._steps) * len(self._sharding.own)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self._steps:
            for index in self._sharding.own:
                samples = self._sharding.samples(step, index)
                yield [(step, image) for image in self._order.indices(samples)]


def encode_with(
    sam: SamEncoder | None,
    clip: FrozenClip,
    *,
    precision: Precision,
    padding: Colour,
    **source: Any,
) -> "LiveSource":
    """A source whose images ``sam`` (if there is one) and ``clip`` encode.

    ``source``: the other arguments of :class:`LiveSource`.
    """
    encode = TowerFeatures(sam=sam, clip=clip, precision=precision, padding=padding)
    if precision == "bf16":
        hold_in_bfloat16(*([sam] if sam is not None else []), clip.model.visual)
    device = source["process"].device
    return LiveSource(encode=encode.to(device), multiple=encode.multiple, padding=padding, **source)


class LiveSource:
    """A :class:`~possam.training.sources.Source` of augmented, encoded images."""

    def __init__(
        self,
        *,
        dataset: ConvertedDataset,
        encode: Encode,
        multiple: int,
        padding: Colour,
        training: TrainingOptions,
        process: TrainingProcess,
        seed: int,
    ) -> None:
        """Set up reading and encoding.

        Args:
            encode: the towers, on the device of ``process``.
            multiple: ``encode`` pads both sides to multiples of this; masks are padded likewise.
            padding: the colour that crops and smaller images of a batch are filled up with.
            training: its augmentation is drawn anew for every (step, image); its ``workers`` read
                images for this process (0: the process itself does).
            seed: of the order and the augmentation.
        """
        self.num_classes = len(dataset.categories)
        self.sharding = BatchSharding.of(training, process)
        self._order = SampleOrder(len(dataset), seed=seed)
        compact = replace(dataset, images=CompactRecords(dataset.images))
        self._samples = SegmentationDataset(
            compact, augmentation=training.augmentation, padding=padding, seed=seed
        )
        self._padding = padding
        self._encode, self._multiple = encode, multiple
        self._workers, self._device = training.workers, process.device

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """This process's micro-batches of the steps ``start <= step < stop``, on its device."""
        workers = usable(self._workers)
        context = fork_server(SegmentationDataset.__module__) if workers else None
        loader = DataLoader(
            self._samples,
            batch_sampler=_Keys(self._order, self.sharding, start, stop),
            num_workers=workers,
            multiprocessing_context=context,
            collate_fn=collate,
            # a generator of its own, so that iterating does not draw from the global one
            generator=torch.Generator(),
        )
        batches = map(self._batch, loader)
        for _ in range(start, stop):
            yield [next(batches) for _ in self.sharding.own]

    @torch.no_grad()
    def _batch(self, samples: list[Sample]) -> Batch:
        height, width = (max(sample.image.shape[side] for sample in samples) for side in (1, 2))
        size, padding = (height, width), self._padding
        images = torch.cat([pad_image(s.image[None], size, padding=padding) for s in samples])
        full = [-(-side // self._multiple) * self._multiple for side in (height, width)]
        backbone, clip = self._encode(send(images, self._device).float())
        return Batch(
            backbone=tuple(level.float() for level in backbone),
            clip_features=clip.float(),
            targets=[
                Target(masks=_pad_masks(sample.masks, *full), labels=sample.labels).to(self._device)
                for sample in samples
            ],
            indices=[sample.index for sample in samples],
        )


def _pad_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """(N, h, w) -> (N, height, width), nothing at the bottom and right."""
    return pad(masks, (0, width - masks.shape[-1], 0, height - masks.shape[-2]))
