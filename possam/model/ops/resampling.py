"""Maps at another resolution."""

from torch import Tensor
from torch.nn import functional as F


def resample_area(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """``F.interpolate(maps, size=size, mode="area")`` of (B, C, H, W).

    Where sides shrink by whole factors, average pooling gives the same. On a CPU PyTorch's adaptive
    pooling, which ``F.interpolate`` calls, takes several times as long: a sixth of a training step
    of the mini scale.
    """
    height, width = maps.shape[-2:]
    if (height, width) == size:
        return maps
    if height % size[0] or width % size[1]:
        return F.interpolate(maps, size=size, mode="area")
    # Each map becomes an image of one channel: average pooling refuses images of none (no targets).
    single = maps.flatten(0, 1).unsqueeze(1)
    pooled = F.avg_pool2d(single, (height // size[0], width // size[1]))
    return pooled.unflatten(0, maps.shape[:2]).squeeze(2)
