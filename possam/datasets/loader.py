"""Training samples of a converted data set: image, masks and labels as tensors.

A sample depends only on (seed, step, index), not on the number of worker processes or on which
samples were loaded before: a resumed run sees the samples of an uninterrupted one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from possam.datasets.augmentation import apply_placement, draw_placement
from possam.datasets.format import ConvertedDataset
from possam.datasets.options import AugmentationOptions
from possam.datasets.pixels import runs
from possam.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training image. N: segments, crowd and void left out, empty ones dropped.

    Attributes:
        image: uint8 RGB (3, H, W), 0..255.
        masks: bool (N, H, W), disjoint.
        labels: int64 (N,), class indices 0..K-1.
        index: position in the data set.
    """

    image: torch.Tensor
    masks: torch.Tensor
    labels: torch.Tensor
    index: int


class SegmentationDataset(Dataset[Sample]):
    """Samples of ``dataset``, augmented as ``augmentation`` says (None: not at all).

    ``dataset[index]`` is the sample of step 0; ``dataset[(step, index)]`` that of ``step``, so that
    a batch sampler of pairs makes worker processes draw a new augmentation in each step.
    """

    def __init__(
        self, dataset: ConvertedDataset, *, augmentation: AugmentationOptions | None, seed: int
    ) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        if isinstance(key, tuple):
            step, index = key
            return self.sample(index, step=step)
        return self.sample(key)

    def sample(self, index: int, *, step: int = 0) -> Sample:
        """The sample at position ``index`` (0..len-1) as it is drawn in ``step``.

        Raises:
            IndexError: no such position.
            InputError: image or label is damaged, or does not match the annotations.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        record = self.dataset.images[index]
        image = torch.from_numpy(self.dataset.image(index)).permute(2, 0, 1).contiguous()
        segments = [segment for segment in record.segments if not segment.is_crowd]
        numbers = self._numbers(index, [segment.id for segment in segments])
        if self.augmentation is not None:
            generator = torch.Generator().manual_seed(self.stream(step, index))
            placement = draw_placement(
                record.height, record.width, settings=self.augmentation, generator=generator
            )
            image, numbers = apply_placement(image, numbers, placement)
        kept = torch.bincount(numbers.flatten(), minlength=1)[1:].nonzero()[:, 0]
        masks = numbers == (kept + 1).to(numbers.dtype)[:, None, None]
        labels = torch.tensor([segment.category for segment in segments], dtype=torch.int64)
        return Sample(image=image, masks=masks, labels=labels[kept], index=index)

    def _numbers(self, index: int, ids: Sequence[int]) -> torch.Tensor:
        """Integers (H, W): 1 + position in ``ids`` of each pixel's segment, 0 for void and others;
        bytes where they suffice, for they are scaled and compared several times as fast.
        """
        pixels = self.dataset.panoptic(index)
        starts, lengths = runs(pixels)
        values, compact = np.unique(pixels.ravel()[starts], return_inverse=True)
        position = {key: number for number, key in enumerate(ids, start=1)}
        if missing := position.keys() - set(values.tolist()):
            raise InputError(
                f"{self.dataset.images[index].panoptic}: segment {min(missing)} has no pixel; "
                "convert the data set again"
            )
        kind = np.uint8 if len(ids) < 256 else np.int32
        table = np.array([position.get(int(value), 0) for value in values], dtype=kind)
        return torch.from_numpy(np.repeat(table[compact], lengths).reshape(pixels.shape))

    def stream(self, step: int, index: int) -> int:
        """Seed of one sample's random numbers: a hash of seed, step and index."""
        words = np.random.SeedSequence([self.seed, step, index]).generate_state(1, np.uint64)
        return int(words[0] >> np.uint64(1))


def collate(samples: list[Sample]) -> list[Sample]:
    """``DataLoader``'s ``collate_fn``: a list, as sizes and numbers of masks differ."""
    return samples
