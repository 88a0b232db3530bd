"""Training samples of a converted data set (image, masks and labels), with their augmentation.

A sample depends only on (seed, step, index), not on the number of worker processes or on which
samples were loaded before: a resumed run sees the samples of an uninterrupted one.

Large-scale jitter as in Ghiasi et al. 2021 (Simple Copy-Paste), in the form of Mask2Former's COCO
recipe: the image is scaled to fit a square of side ``s * size``, s uniform in [min_scale,
max_scale]; a larger result is cut to a random ``size`` x ``size`` window, a smaller one is padded
at the right and the bottom. H W: height and width of the stored image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from possam.datasets.format import ConvertedDataset
from possam.datasets.options import AugmentationOptions
from possam.datasets.pixels import runs
from possam.model.options import Colour
from possam.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One draw, in pixels: scale to ``height`` x ``width``, cut the ``size`` x ``size`` window at
    (``top``, ``left``) (``size`` None: keep all), then mirror.
    """

    height: int
    width: int
    top: int
    left: int
    size: int | None
    mirror: bool


def draw_placement(
    height: int, width: int, *, settings: AugmentationOptions, generator: torch.Generator
) -> Placement:
    """Draw an augmentation for an image of ``height`` x ``width`` pixels.

    Every policy draws four numbers, so that streams of random numbers stay comparable.
    """
    scale, down, right, mirror = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    if settings.policy != "lsj":
        flip = settings.policy == "flip" and mirror < 0.5
        return Placement(height=height, width=width, top=0, left=0, size=None, mirror=flip)
    size = settings.size
    target = size * (settings.min_scale + scale * (settings.max_scale - settings.min_scale))
    factor = min(target / height, target / width)
    new_height = max(1, round(height * factor))
    new_width = max(1, round(width * factor))
    # floor(u * (n + 1)) is uniform over the n + 1 corners.
    top = int(down * (max(new_height - size, 0) + 1))
    left = int(right * (max(new_width - size, 0) + 1))
    return Placement(
        height=new_height, width=new_width, top=top, left=left, size=size, mirror=mirror < 0.5
    )


def apply_placement(
    image: torch.Tensor, labels: torch.Tensor, placement: Placement, *, padding: Colour
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply ``placement``, drawn for this height and width, to an image and its label map.

    Args:
        image: uint8 (3, H, W), RGB; ``padding``: the colour of what is added to it.
        labels: integer (H, W), values below 2^24, 0 for no segment, as in the padding.

    Returns:
        Image (3, h, w), resized bilinearly with antialiasing, and labels (h, w), by nearest pixel,
        both sampled at pixel centres, with their dtypes. h = w = ``size``, or H W if that is None.
    """
    photo: torch.Tensor = tv_tensors.Image(image)
    mask: torch.Tensor = tv_tensors.Mask(labels)
    size = [placement.height, placement.width]
    if list(labels.shape) != size:
        photo = transforms.resize(
            photo, size, interpolation=InterpolationMode.BILINEAR, antialias=True
        )
        # v2's own kernel for masks is NEAREST, whose samples lie half a pixel off the image's.
        nearest = InterpolationMode.NEAREST_EXACT
        scaled = transforms.resize_image(labels[None], size, interpolation=nearest)[0]
        mask = tv_tensors.Mask(scaled)
    if placement.size is not None:
        # crop pads with zeros beyond the right and the lower edge.
        window = (placement.top, placement.left, placement.size, placement.size)
        photo, mask = transforms.crop(photo, *window), transforms.crop(mask, *window)
        for channel, value in zip(photo, padding, strict=True):
            channel[placement.height :] = value
            channel[:, placement.width :] = value
    if placement.mirror:
        photo, mask = transforms.horizontal_flip(photo), transforms.horizontal_flip(mask)
    return photo.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).to(labels.dtype)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One training image with N segments: no crowds, and none without a pixel in the window.

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

    ``self[index]`` is the sample of step 0, ``self[(step, index)]`` that of ``step``: with a batch
    sampler of pairs, worker processes draw a new augmentation in each step.
    """

    def __init__(
        self,
        dataset: ConvertedDataset,
        *,
        augmentation: AugmentationOptions | None,
        padding: Colour,
        seed: int,
    ) -> None:
        self.dataset, self.augmentation, self.seed = dataset, augmentation, seed
        self.padding = padding

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        step, index = key if isinstance(key, tuple) else (0, key)
        return self.sample(index, step=step)

    def sample(self, index: int, *, step: int = 0) -> Sample:
        """The sample at position ``index`` (0..len-1), as drawn in ``step``.

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
            image, numbers = apply_placement(image, numbers, placement, padding=self.padding)
        kept = torch.bincount(numbers.flatten(), minlength=1)[1:].nonzero()[:, 0]
        masks = numbers == (kept + 1).to(numbers.dtype)[:, None, None]
        labels = torch.tensor([segment.category for segment in segments], dtype=torch.int64)
        return Sample(image=image, masks=masks, labels=labels[kept], index=index)

    def _numbers(self, index: int, ids: Sequence[int]) -> torch.Tensor:
        """1 + position in ``ids`` of each pixel's segment, (H, W), 0 for void and other segments;
        uint8 if it suffices, which is resized and compared several times as fast, else int32.
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
    """``DataLoader``'s ``collate_fn``: a list, because sizes and numbers of masks differ."""
    return samples
