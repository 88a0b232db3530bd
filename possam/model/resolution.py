"""Images at test resolution."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from possam.model.options import Colour, ResolutionOptions
from possam.runtime.errors import InputError


@dataclass(frozen=True)
class ResizedImage:
    """An image at test resolution.

    Attributes:
        pixels: (3, h, w) float32 RGB, 0..255.
        content_size: (h', w') of the image proper, at the top left of ``pixels``.
        original_size: (H, W) before resizing, the size of the results.
    """

    pixels: Tensor
    content_size: tuple[int, int]
    original_size: tuple[int, int]


def target_size(original: tuple[int, int], options: ResolutionOptions) -> tuple[int, int]:
    """Height and width of an image of size ``original`` when it is resized as ``options`` say."""
    height, width = original
    if options.policy == "native":
        return original
    if options.policy == "letterbox":
        scale = options.size / max(original)
    else:
        scale = min(options.size / min(original), options.max_size / max(original))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_for_test(image: Tensor, options: ResolutionOptions, *, padding: Colour) -> ResizedImage:
    """Resize (3, H, W) uint8 RGB with antialiased bilinear interpolation, as PIL does.

    ``letterbox`` also pads to a square of ``size`` on the right and below, with ``padding``. An
    image of another shape is an InputError.
    """
    if image.dim() != 3 or image.shape[0] != 3:
        raise InputError(f"image: (3, H, W) is expected, not {tuple(image.shape)}")
    original = (image.shape[1], image.shape[2])
    resized = target_size(original, options)
    if resized != original:
        image = F.interpolate(
            image[None], size=resized, mode="bilinear", align_corners=False, antialias=True
        )[0]
    pixels = image.float()
    if options.policy == "letterbox":
        pixels = pad_image(pixels[None], (options.size, options.size), padding=padding)[0]
    return ResizedImage(pixels, resized, original)


def pad_image(images: Tensor, size: tuple[int, int], *, padding: Colour) -> Tensor:
    """Pad images (B, 3, H, W), RGB 0..255, on the right and below to ``size`` with ``padding``."""
    height, width = images.shape[-2:]
    padded = images.new_empty(len(images), 3, *size)
    for channel, value in enumerate(padding):  # a tensor of them would be a copy to the GPU
        padded[:, channel] = value
    padded[..., :height, :width] = images
    return padded
