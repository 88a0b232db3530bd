"""Training samples: alignment of image and masks, determinism, crowd and void."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from possam.datasets.format import ConvertedDataset
from possam.datasets.loader import (
    Placement,
    SegmentationDataset,
    apply_placement,
    collate,
    draw_placement,
)
from possam.datasets.options import AugmentationOptions
from possam.runtime.errors import InputError
from tests.support.layouts import coco_ids, convert_coco, make_coco, save_rgb_ids

GREY = (124, 116, 104)

LSJ = AugmentationOptions(policy="lsj", size=16, min_scale=0.1, max_scale=2.0)
FLIP = AugmentationOptions(policy="flip", size=16, min_scale=1.0, max_scale=1.0)
SIDES = st.integers(1, 40)


def draw(height: int, width: int, seed: int, settings: AugmentationOptions) -> Placement:
    generator = torch.Generator().manual_seed(seed)
    return draw_placement(height, width, settings=settings, generator=generator)


@given(SIDES, SIDES, st.integers(0, 10_000))
def test_placements_keep_aspect_and_window_inside(height: int, width: int, seed: int) -> None:
    placement = draw(height, width, seed, LSJ)
    longer, scaled = max(height, width), max(placement.height, placement.width)
    assert 1 <= scaled <= 2 * LSJ.size
    for side, new in ((height, placement.height), (width, placement.width)):
        assert abs(new - side * scaled / longer) <= 1 + 0.5 * side / longer
    assert 0 <= placement.top <= max(placement.height - LSJ.size, 0)
    assert 0 <= placement.left <= max(placement.width - LSJ.size, 0)


def test_scales_corners_and_mirrors_cover_their_range() -> None:
    placements = [draw(30, 30, seed, LSJ) for seed in range(2000)]
    scales = np.array([p.height / LSJ.size for p in placements])
    assert scales.min() < 0.15
    assert scales.max() > 1.95
    assert abs(scales.mean() - 1.05) < 0.05
    assert 0.45 < np.mean([p.mirror for p in placements]) < 0.55
    large = [p for p in placements if p.height == 2 * LSJ.size]
    assert {p.top for p in large} >= {0, LSJ.size}
    assert {p.left for p in large} >= {0, LSJ.size}
    assert all(p.top == p.left == 0 for p in placements if p.height <= LSJ.size)


@settings(max_examples=60, deadline=None)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 10_000), st.integers(0, 3))
def test_image_and_labels_stay_aligned(height: int, width: int, seed: int, turn: int) -> None:
    # The image is the label map itself: black and white, one straight edge between them.
    labels = torch.zeros(height, width, dtype=torch.int32)
    labels[:, : width // 2] = 1
    if turn % 2:
        labels = labels.T.contiguous()
    if turn >= 2:
        labels = 1 - labels
    image = (labels * 255).to(torch.uint8).expand(3, -1, -1).contiguous()
    placement = draw(*labels.shape, seed, LSJ)
    photo, mask = apply_placement(image, labels, placement, padding=GREY)
    assert photo.shape == (3, LSJ.size, LSJ.size)
    assert mask.shape == (LSJ.size, LSJ.size)
    assert (photo.dtype, mask.dtype) == (torch.uint8, torch.int32)
    # Where the bilinear image is beyond doubt, the nearest label says the same.
    assert (mask[photo[0] > 192] == 1).all()
    assert (mask[photo[0] < 64] == 0).all()


@given(SIDES, SIDES, st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_padding_has_its_colour_and_no_label(height: int, width: int, seed: int) -> None:
    image = torch.full((3, height, width), 200, dtype=torch.uint8)
    labels = torch.full((height, width), 7, dtype=torch.int32)
    placement = draw(height, width, seed, LSJ)
    photo, mask = apply_placement(image, labels, placement, padding=GREY)
    rows, columns = (min(side, LSJ.size) for side in (placement.height, placement.width))
    inside = torch.zeros(LSJ.size, LSJ.size, dtype=torch.bool)
    inside[:rows, :columns] = True
    if placement.mirror:
        inside = inside.flip(1)
    assert torch.equal(mask != 0, inside)
    assert (mask[inside] == 7).all()
    assert (photo[:, inside] == 200).all()
    assert (photo[:, ~inside] == torch.tensor(GREY)[:, None]).all()


def test_labels_up_to_the_largest_id_survive_scaling() -> None:
    labels = torch.tensor([[(1 << 24) - 1, 0], [1, 12_345_677]], dtype=torch.int32)
    placement = Placement(height=4, width=4, top=0, left=0, size=4, mirror=False)
    _, mask = apply_placement(
        torch.zeros(3, 2, 2, dtype=torch.uint8), labels, placement, padding=GREY
    )
    assert torch.equal(mask, labels.repeat_interleave(2, 0).repeat_interleave(2, 1))


def test_flip_mirrors_the_whole_image_and_none_changes_nothing() -> None:
    image = torch.arange(3 * 5 * 7, dtype=torch.uint8).reshape(3, 5, 7)
    labels = torch.arange(35, dtype=torch.int32).reshape(5, 7)
    seen = set()
    for seed in range(20):
        placement = draw(5, 7, seed, FLIP)
        photo, mask = apply_placement(image, labels, placement, padding=GREY)
        seen.add(placement.mirror)
        assert torch.equal(photo, image.flip(2) if placement.mirror else image)
        assert torch.equal(mask, labels.flip(1) if placement.mirror else labels)
    assert seen == {True, False}
    still = AugmentationOptions(policy="none", size=1, min_scale=1.0, max_scale=1.0)
    assert not any(draw(5, 7, seed, still).mirror for seed in range(20))


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="min_scale"):
        AugmentationOptions(policy="lsj", size=8, min_scale=2.0, max_scale=1.0)
    with pytest.raises(ValueError, match="policy"):
        AugmentationOptions(policy="blur", size=8, min_scale=1.0, max_scale=1.0)  # type: ignore[arg-type]


@pytest.fixture
def dataset(tmp_path: Path) -> ConvertedDataset:
    arguments = make_coco(tmp_path)
    convert_coco(**arguments)
    return ConvertedDataset.open(arguments["out"])


def test_samples_without_augmentation_are_the_annotations(dataset: ConvertedDataset) -> None:
    sample = SegmentationDataset(dataset, augmentation=None, padding=GREY, seed=0)[1]
    assert sample.index == 1
    assert torch.equal(sample.image, torch.from_numpy(dataset.image(1)).permute(2, 0, 1))
    # The crowd of bars (9) and void are left out.
    assert sample.labels.tolist() == [1, 0]
    assert sample.masks.dtype == torch.bool
    ids = torch.from_numpy(coco_ids())
    assert torch.equal(sample.masks, torch.stack([ids == 70000, ids == 300]))


def test_segments_that_left_the_window_are_dropped(dataset: ConvertedDataset) -> None:
    tiny = AugmentationOptions(policy="lsj", size=2, min_scale=3.0, max_scale=3.0)
    samples = SegmentationDataset(dataset, augmentation=tiny, padding=GREY, seed=0)
    counts = set()
    for step in range(30):
        sample = samples.sample(0, step=step)
        assert sample.masks.shape == (len(sample.labels), 2, 2)
        assert sample.masks.flatten(1).any(dim=1).all()
        assert (sample.masks.sum(dim=0) <= 1).all()
        counts.add(len(sample.labels))
    assert {0, 1, 2} >= counts
    assert len(counts) > 1


def test_samples_depend_on_seed_step_and_index_only(dataset: ConvertedDataset) -> None:
    samples = SegmentationDataset(dataset, augmentation=LSJ, padding=GREY, seed=3)
    again = SegmentationDataset(dataset, augmentation=LSJ, padding=GREY, seed=3)
    first = samples[(5, 1)]
    samples[(6, 0)]
    assert torch.equal(first.image, again[(5, 1)].image)
    assert torch.equal(first.masks, again.sample(1, step=5).masks)
    assert torch.equal(samples[0].image, samples[(0, 0)].image)
    other = SegmentationDataset(dataset, augmentation=LSJ, padding=GREY, seed=4)
    images = [first.image, samples[(6, 1)].image, other[(5, 1)].image]
    assert not any(torch.equal(a, b) for i, a in enumerate(images) for b in images[:i])


def test_worker_processes_load_what_this_process_loads(dataset: ConvertedDataset) -> None:
    samples = SegmentationDataset(dataset, augmentation=LSJ, padding=GREY, seed=3)
    keys = [[(step, index) for index in range(2)] for step in range(3)]
    loader = DataLoader(samples, batch_sampler=keys, collate_fn=collate, num_workers=2)
    for batch, wanted in zip(loader, keys, strict=True):
        for sample, key in zip(batch, wanted, strict=True):
            assert sample.index == key[1]
            assert torch.equal(sample.image, samples[key].image)
            assert torch.equal(sample.masks, samples[key].masks)


def test_positions_outside_and_labels_that_changed_are_refused(
    dataset: ConvertedDataset,
) -> None:
    samples = SegmentationDataset(dataset, augmentation=None, padding=GREY, seed=0)
    with pytest.raises(IndexError):
        samples[2]
    with pytest.raises(IndexError):
        samples[-1]
    save_rgb_ids(dataset.images[0].panoptic, np.zeros((4, 6), dtype=int))
    with pytest.raises(InputError, match="no pixel"):
        samples[0]


@pytest.mark.parametrize("count", [1, 255, 256, 300])
def test_any_number_of_segments_has_its_masks(count: int) -> None:
    ids = np.arange(320, dtype=np.int32).reshape(16, 20) * 7  # 0 is void, the last ones are others
    numbers = range(1, count + 1)
    segments = [SimpleNamespace(id=7 * n, category=n, is_crowd=False) for n in numbers]
    record = SimpleNamespace(height=16, width=20, segments=segments)
    dataset: Any = MagicMock(images=[record])
    dataset.__len__.return_value = 1
    dataset.image.return_value = np.zeros((16, 20, 3), np.uint8)
    dataset.panoptic.return_value = ids
    sample = SegmentationDataset(dataset, augmentation=None, padding=GREY, seed=0).sample(0)
    assert sample.labels.tolist() == list(numbers)
    assert torch.equal(sample.masks.flatten(1).int().argmax(dim=1), sample.labels)
    assert (sample.masks.flatten(1).sum(dim=1) == 1).all()
