"""The four scales, at even and odd sizes."""

import pytest
import torch
from torch.testing import assert_close

from possam.model.baselines.fcclip import StagePyramid
from possam.model.pyramid import ResampledPyramid, SimplePyramid


@pytest.mark.parametrize("kind", [SimplePyramid, ResampledPyramid])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 3)])
def test_scales(kind: type, size: tuple[int, int]) -> None:
    height, width = size
    maps = kind(channels=[12], out_channels=8)(torch.randn(2, 12, height, width))
    halved = (-(-height // 2), -(-width // 2))
    expected = [(4 * height, 4 * width), (2 * height, 2 * width), size, halved]
    assert [tuple(level.shape) for level in maps] == [(2, 8, *shape) for shape in expected]


def test_pyramid_is_local_and_upright() -> None:
    """A change in one corner of SAM's map stays in that corner of every scale."""
    pyramid = SimplePyramid(channels=[12], out_channels=8)
    features = torch.randn(1, 12, 16, 16)
    changed = features.clone()
    changed[..., 0, 15] += 1
    for before, after in zip(pyramid(features), pyramid(changed), strict=True):
        different = (before != after).any(1)[0].nonzero()
        height, width = before.shape[-2:]
        assert len(different)
        assert different[:, 0].max() < height / 4 and different[:, 1].min() >= width * 3 / 4


def test_resampled_pyramid_is_the_projected_map_resampled() -> None:
    pyramid = ResampledPyramid(channels=[3], out_channels=3)
    for conv in pyramid.out:
        conv.weight.data.copy_(torch.eye(3)[..., None, None])
        conv.bias.data.zero_()
    features = torch.arange(8.0).view(1, 1, 2, 4).expand(1, 3, 2, 4)
    four, two, one, half = pyramid(features)
    assert_close(one, features)
    assert_close(half[0, 0], torch.tensor([[2.5, 4.5]]))
    assert_close(two[0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]))
    assert four.shape[-2:] == (8, 16)


def test_stages_that_halve_are_taken_as_they_are() -> None:
    stages = [torch.randn(2, 3 + k, 16 >> k, 24 >> k) for k in range(4)]
    pyramid = StagePyramid(channels=[3, 4, 5, 6], out_channels=8)
    maps = pyramid(*stages)
    assert all(level is stage for level, stage in zip(maps, stages, strict=True))
    assert [level.shape[1] for level in maps] == [*pyramid.out_channels] == [3, 4, 5, 6]
    assert not [*pyramid.parameters()]


def test_stages_that_keep_the_resolution_are_averaged_down() -> None:
    """Strides 4, 8, 8 and 8, the synthetic CLIP's, become 4, 8, 16 and 32."""
    stages = [torch.randn(2, 3, 8, 16), *(torch.randn(2, 3, 4, 8) for _ in range(3))]
    maps = StagePyramid(channels=[3] * 4, out_channels=8)(*stages)
    assert maps[0] is stages[0] and maps[1] is stages[1]
    assert_close(maps[2], stages[2].unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    assert_close(maps[3], stages[3].unfold(2, 4, 4).unfold(3, 4, 4).mean((-1, -2)))
