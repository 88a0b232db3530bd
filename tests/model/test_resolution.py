"""Test resolutions: sizes by hand, pixels against PIL."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from possam.model.options import ResolutionOptions
from possam.model.resolution import resize_for_test, target_size
from possam.runtime.errors import InputError

GREY = (124, 116, 104)


def options(policy: Any, size: int, max_size: int) -> ResolutionOptions:
    return ResolutionOptions(policy=policy, size=size, max_size=max_size)


@pytest.mark.parametrize(
    ("policy", "original", "expected"),
    [
        ("shortest_edge", (480, 640), (1024, 1365)),
        ("shortest_edge", (640, 480), (1365, 1024)),
        ("shortest_edge", (100, 1000), (256, 2560)),
        ("letterbox", (480, 640), (768, 1024)),
        ("letterbox", (3000, 1500), (1024, 512)),
        ("native", (37, 41), (37, 41)),
        ("shortest_edge", (1, 9999), (1, 2560)),
    ],
)
def test_sizes(policy: str, original: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target_size(original, options(policy, 1024, 2560)) == expected


@pytest.mark.parametrize("size", [20, 90])
def test_pixels_are_pil_s(size: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    resized = resize_for_test(
        torch.from_numpy(pixels).permute(2, 0, 1), options("shortest_edge", size, 999), padding=GREY
    )
    height, width = resized.content_size
    oracle = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    difference = resized.pixels.permute(1, 2, 0).numpy() - oracle.astype(np.float32)
    assert np.abs(difference).max() <= 1
    assert resized.original_size == (45, 60) and resized.pixels.dtype == torch.float32


def test_letterbox_pads_to_a_square() -> None:
    image = torch.full((3, 10, 20), 7, dtype=torch.uint8)
    resized = resize_for_test(image, options("letterbox", 40, 40), padding=GREY)
    assert resized.pixels.shape == (3, 40, 40) and resized.content_size == (20, 40)
    assert (resized.pixels[:, :20] == 7).all()
    assert torch.equal(resized.pixels[:, 39, 0], torch.tensor(GREY).float())


def test_native_is_untouched() -> None:
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    resized = resize_for_test(image, options("native", 1, 1), padding=GREY)
    assert torch.equal(resized.pixels, image.float())


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="3, H, W"):
        resize_for_test(torch.zeros(4, 4), options("native", 1, 1), padding=GREY)
