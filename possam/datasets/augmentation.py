"""Training augmentation: large-scale jitter, fixed-size crop and mirror; or the mirror alone.

Large-scale jitter as in Ghiasi et al. 2021 (Simple Copy-Paste), in the form of Mask2Former's COCO
recipe: the image is scaled to fit ``s * size`` with s drawn from [min_scale, max_scale], a random
``size`` x ``size`` window is cut where it is larger, and zeros fill it up at the right and the
bottom where it is smaller. H W: height and width of the stored image.
"""

from dataclasses import dataclass

import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from possam.datasets.options import AugmentationOptions


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One draw, in pixels: scale to ``height`` x ``width``, cut a ``size`` x ``size`` window whose
    corner is (``top``, ``left``) (``size`` None: keep all), then mirror."""

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

    Four numbers are drawn whatever the policy, so that streams of random numbers stay comparable.
    """
    scale, down, right, mirror = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    if settings.policy != "lsj":
        flip = settings.policy == "flip" and mirror < 0.5
        return Placement(height=height, width=width, top=0, left=0, size=None, mirror=flip)
    size = settings.size
    wanted = size * (settings.min_scale + scale * (settings.max_scale - settings.min_scale))
    factor = min(wanted / height, wanted / width)
    new_height = max(1, round(height * factor))
    new_width = max(1, round(width * factor))
    # floor(u * (n + 1)) is uniform over the n + 1 corners.
    top = int(down * (max(new_height - size, 0) + 1))
    left = int(right * (max(new_width - size, 0) + 1))
    return Placement(
        height=new_height, width=new_width, top=top, left=left, size=size, mirror=mirror < 0.5
    )


def apply_placement(
    image: torch.Tensor, labels: torch.Tensor, placement: Placement
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply one draw to an image and its label map alike.

    Args:
        image: uint8 (3, H, W).
        labels: integer (H, W), values below 2^24, 0 for "nothing" (as the padding).
        placement: from :func:`draw_placement` for this height and width.

    Returns:
        image (3, h, w) bilinear with antialiasing, labels (h, w) of the same dtype, nearest; both
        sampled at pixel centres. h = w = ``placement.size``, or H W where it is None.
    """
    photo: torch.Tensor = tv_tensors.Image(image)
    mask: torch.Tensor = tv_tensors.Mask(labels)
    size = [placement.height, placement.width]
    if list(labels.shape) != size:
        photo = transforms.resize(
            photo, size, interpolation=InterpolationMode.BILINEAR, antialias=True
        )
        # v2's own kernel for masks is NEAREST, whose samples lie half a pixel off the image's.
        mask = tv_tensors.Mask(
            transforms.resize_image(
                mask.as_subclass(torch.Tensor)[None],
                size,
                interpolation=InterpolationMode.NEAREST_EXACT,
            )[0]
        )
    if placement.size is not None:
        # crop fills with zeros what lies beyond the right and the lower edge.
        window = (placement.top, placement.left, placement.size, placement.size)
        photo, mask = transforms.crop(photo, *window), transforms.crop(mask, *window)
    if placement.mirror:
        photo, mask = transforms.horizontal_flip(photo), transforms.horizontal_flip(mask)
    return photo.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor).to(labels.dtype)
