"""Timing: what warms up, and what is timed."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from possam.evaluation import efficiency

SIZES = [(4, 6), (4, 6), (6, 4), (4, 6), (8, 8)]


@pytest.mark.parametrize(
    ("images", "warm_up"),
    [(1, [0, 0, 0]), (2, [0, 0, 1]), (4, [0, 2, 0]), (5, [0, 2, 4]), (9, [0, 2, 4])],
)
def test_every_size_is_seen_before_the_clock_starts(
    monkeypatch: pytest.MonkeyPatch, images: int, warm_up: list[int]
) -> None:
    seen: list[int] = []
    now = [0.0]

    def segment(pixels: Any, **_: Any) -> None:
        seen.append(int(pixels[0, 0, 0]))
        # An image takes as many seconds as its number says, and the first ones a hundred more.
        now[0] += seen[-1] + (100 if len(seen) <= 3 else 0)

    monkeypatch.setattr(efficiency, "segment_image", segment)
    monkeypatch.setattr(efficiency.time, "perf_counter", lambda: now[0])
    records = [SimpleNamespace(height=height, width=width) for height, width in SIZES]

    class Images:
        images, categories = records, ()

        def __len__(self) -> int:
            return len(records)

        def image(self, position: int) -> Any:
            height, width = SIZES[position]
            return np.full((height, width, 3), position, np.uint8)

    seconds, warming = efficiency.time_images(
        segmenter=cast(Any, SimpleNamespace(eval=lambda: None)),
        dataset=cast(Any, Images()),
        text=cast(Any, None),
        seen=(),
        inference=cast(Any, None),
        images=images,
        label="x",
    )
    timed = list(range(min(images, len(SIZES))))
    assert seen == [*warm_up, *timed]
    assert seconds.tolist() == timed and warming == 300 + sum(warm_up)
