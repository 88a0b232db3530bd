"""Test resolutions.

Shapes: H W of images.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from possam.runtime.errors import InputError

PADDING = (123.675, 116.28, 103.53)
"""SAM's pixel mean, RGB 0..255: zero after its normalisation, and about zero after CLIP's."""

Policy = Literal["shortest_edge", "letterbox", "native"]


@dataclass(frozen=True)
class ResizedImage:
    """An image at test resolution.

    Attributes:
        pixels: (3, h, w) float32 RGB, 0..255.
        content_size: (h', w') of the image proper, at the top left of ``pixels``.
        original_size: (H, W) before resizing, the size of what is predicted.
    """

    pixels: Tensor
    content_size: tuple[int, int]
    original_size: tuple[int, int]


def target_size(
    original: tuple[int, int], *, policy: Policy, size: int, max_size: int
) -> tuple[int, int]:
    """Height and width of the resized image.

    ``shortest_edge``: the shorter side becomes ``size``, unless the longer one would exceed
    ``max_size`` (then that becomes ``max_size``), as detectron2 and ODISE do.
    ``letterbox``: the longer side becomes ``size``, as SAM does. ``native``: unchanged.
    """
    height, width = original
    if policy == "native":
        return original
    if policy == "shortest_edge":
        scale = size / min(original)
        if scale * max(original) > max_size:
            scale = max_size / max(original)
    elif policy == "letterbox":
        scale = size / max(original)
    else:
        raise InputError(
            f"resolution.policy: unknown {policy!r}; "
            "valid choices: shortest_edge, letterbox, native"
        )
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_for_test(image: Tensor, *, policy: Policy, size: int, max_size: int) -> ResizedImage:
    """Resize with antialiased bilinear interpolation, as PIL does; ``letterbox`` also pads.

    Padding is to ``size`` x ``size`` on the right and below, with :data:`PADDING`.

    Args:
        image: (3, H, W) uint8 RGB.
        policy, size, max_size: see :func:`target_size`.
    """
    if image.dim() != 3 or image.shape[0] != 3:
        raise InputError(f"image: (3, H, W) is expected, not {tuple(image.shape)}")
    original = (image.shape[1], image.shape[2])
    resized = target_size(original, policy=policy, size=size, max_size=max_size)
    if resized != original:
        image = F.interpolate(
            image[None], size=resized, mode="bilinear", align_corners=False, antialias=True
        )[0]
    pixels = image.float()
    if policy == "letterbox":
        pixels = pad_image(pixels[None], (size, size))[0]
    return ResizedImage(pixels, resized, original)


def pad_image(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad float images (B, 3, H, W) on the right and below to ``size`` with :data:`PADDING`."""
    height, width = images.shape[-2:]
    padded = images.new_tensor(PADDING).view(1, 3, 1, 1).repeat(len(images), 1, *size)
    padded[..., :height, :width] = images
    return padded
