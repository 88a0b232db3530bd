"""Masks as others wrote them: what pycocotools may see, and what is refused before."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as run_length

from possam.datasets.masks import decode_counts, mask_fault

HEIGHT, WIDTH = 4, 6
GOOD = {
    "polygon": [[1, 1, 3.5, 1, 3, 3]],
    "polygon beyond the image": [[-5, -5, 30, 0, 0, 30.5]],
    "numbers": {"size": [4, 6], "counts": [20, 4]},
    "nothing": {"size": [4, 6], "counts": [24]},
    "text": {"size": [4, 6], "counts": "d04"},
}
BAD: dict[str, tuple[Any, str]] = {
    "null": (None, "neither"),
    "text for a mask": ("d04", "neither"),
    "no polygon": ([], "no polygon"),
    "number for a polygon": ([5], "not a list of numbers"),
    "text in a polygon": ([["1", 1, 2, 1, 2, 2]], "not a list of numbers"),
    "truth in a polygon": ([[True, 1, 2, 1, 2, 2]], "not a list of numbers"),
    "box for a polygon": ([[1, 1, 2, 2]], "three points"),
    "odd polygon": ([[1, 1, 2, 1, 2, 2, 3]], "three points"),
    "far": ([[1, 1, 1e9, 1, 2, 2]], "far beyond"),
    "endless": ([[1, 1, float("inf"), 1, 2, 2]], "far beyond"),
    "no number": ([[1, 1, float("nan"), 1, 2, 2]], "not finite|far beyond"),
    "beyond any float": ([[1, 1, 10**400, 1, 2, 2]], "far beyond"),
    "zigzag": ([[-40, 0, 60, 0] * 60_000], "outline"),
    "no size": ({"counts": [24]}, "neither"),
    "size of another image": ({"size": [6, 4], "counts": [24]}, "size"),
    "size of fractions": ({"size": [4.0, 6.0], "counts": [24]}, "size"),
    "counts of truths": ({"size": [4, 6], "counts": [True, 23]}, "whole numbers"),
    "counts of fractions": ({"size": [4, 6], "counts": [1.0, 23.0]}, "whole numbers"),
    "counts below 0": ({"size": [4, 6], "counts": [30, -6]}, "whole numbers"),
    "no counts": ({"size": [4, 6], "counts": []}, "whole numbers"),
    "short": ({"size": [4, 6], "counts": [20, 3]}, "add up to 23 pixels, the image has 24"),
    "long": ({"size": [4, 6], "counts": [20, 3, 1 << 40]}, "add up to"),
    "null for counts": ({"size": [4, 6], "counts": None}, "neither a list nor text"),
    "empty text": ({"size": [4, 6], "counts": ""}, "not the text"),
    "text beyond ASCII": ({"size": [4, 6], "counts": "dé4"}, "not the text"),
    "text of other characters": ({"size": [4, 6], "counts": "d 4"}, "not the text"),
    "text that is cut off": ({"size": [4, 6], "counts": "d0d"}, "cut off"),
    "text of a huge number": ({"size": [4, 6], "counts": "oooooooooo1"}, "too many digits"),
    "text of a short mask": ({"size": [4, 6], "counts": "d03"}, "add up to 23"),
    "text below 0": ({"size": [4, 6], "counts": "d0T1L"}, "below 0"),
}


@pytest.mark.parametrize("case", GOOD)
def test_what_is_sound_makes_a_mask(case: str) -> None:
    assert mask_fault(GOOD[case], HEIGHT, WIDTH) == ""


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said(case: str) -> None:
    mask, fault = BAD[case]
    found = mask_fault(mask, HEIGHT, WIDTH)
    assert any(part in found for part in fault.split("|")), found


@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 1 << 32), st.floats(0, 1))
def test_the_text_is_read_as_pycocotools_reads_it(
    height: int, width: int, seed: int, share: float
) -> None:
    pixels = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    text = run_length.encode(np.asfortranarray(pixels))["counts"].decode()
    lengths = decode_counts(text)
    flat = np.repeat(np.arange(len(lengths)) % 2, lengths)
    assert np.array_equal(flat.reshape(width, height).T, pixels)
    assert mask_fault({"size": [height, width], "counts": text}, height, width) == ""
