"""Sources: order and augmentation as pure functions of (seed, step), and true targets."""

import multiprocessing
import os
import signal
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from possam.runtime.errors import InputError
from possam.training.distributed import TrainingProcess, single_process
from possam.training.feature_cache import CachedFeatures, cache_features
from possam.training.live_source import CompactRecords, LiveSource
from possam.training.sources import CachedSource, SampleOrder, Source
from possam.training.targets import Batch, derive_seed, target_from_ids
from tests.support.training_fakes import FakeDataset, augmentation, scene, training_params


def equal(one: Batch, two: Batch) -> bool:
    return (
        one.indices == two.indices
        and all(map(torch.equal, one.backbone, two.backbone))
        and torch.equal(one.clip_features, two.clip_features)
        and all(
            torch.equal(a.masks, b.masks) and torch.equal(a.labels, b.labels)
            for a, b in zip(one.targets, two.targets, strict=True)
        )
    )


def flat(source: Source, start: int, stop: int) -> list[Batch]:
    """The micro-batches of all steps, one after another."""
    return [batch for batches in source.batches(start, stop) for batch in batches]


@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 4))
def test_every_epoch_shows_every_image_once(images: int, seed: int, epoch: int) -> None:
    order = SampleOrder(images, seed=seed)
    shown = order.indices(range(epoch * images, (epoch + 1) * images))
    assert sorted(shown) == list(range(images))


@given(st.lists(st.integers(0, 90), min_size=1, max_size=20))
def test_the_order_does_not_depend_on_what_was_asked_before(positions: list[int]) -> None:
    used = SampleOrder(7, seed=1)
    assert used.indices(positions) == [SampleOrder(7, seed=1).index(p) for p in positions]


def test_epochs_and_seeds_differ() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return SampleOrder(50, seed=seed).indices(range(50 * number, 50 * (number + 1)))

    assert epoch(0, 0) != epoch(0, 1) != epoch(1, 1)


def test_no_images_is_an_error() -> None:
    with pytest.raises(InputError, match="no images"):
        SampleOrder(0, seed=0)


def test_seeds_depend_on_all_parts_and_their_order() -> None:
    found = {derive_seed("a", 1, 2), derive_seed("a", 2, 1), derive_seed("b", 1, 2)}
    assert len(found) == 3 and all(0 <= seed < 2**63 for seed in found)
    assert derive_seed("a", 1, 2) in found


def test_targets_of_an_id_map() -> None:
    ids = np.array([[0, 700_000], [9, 9]], dtype=np.int32)
    target = target_from_ids(ids, [(9, 2), (700_000, 1), (5, 0)])
    assert target.labels.tolist() == [2, 1]  # segment 5 has no pixel, pixel 0 no segment
    assert target.masks.tolist() == [[[False, False], [True, True]], [[False, True], [False] * 2]]
    assert target_from_ids(ids, []).masks.shape == (0, 2, 2)


def params(policy: str = "none", sizes: dict[str, Any] | None = None, **changes: Any) -> Any:
    """Recipe with batches of 4 images in one micro-batch."""
    chosen = augmentation(policy, **(sizes or {}))
    values = {"batch_size": 4, "micro_batch": 4, "feature_cache": False, **changes}
    return training_params(augmentation=chosen, **values)


def pooled(images: Tensor) -> Tensor:
    return avg_pool2d(images * torch.arange(images.shape[-1]), 4)


def cache(path: Path, dataset: FakeDataset, *, flipped: bool = True) -> CachedFeatures:
    cache_features(
        encode=lambda images: (pooled(images),),
        dataset=dataset,
        out=path,
        tower_hash="t",
        flipped=flipped,
        batch_size=4,
        workers=0,
    )
    return CachedFeatures.open(path, dataset_content="data-1", tower_hash="t")


def cached_source(folder: Path, policy: str = "none", **changes: Any) -> CachedSource:
    dataset = changes.pop("dataset", FakeDataset())
    features = cache(folder / "cache", dataset, flipped=changes.pop("flipped", True))
    return CachedSource(
        sam=features,
        clip=features,
        dataset=dataset,
        training=params(policy),
        process=single_process("cpu"),
        seed=2,
    )


def test_cached_batches_hold_the_features_and_masks_of_their_images(tmp_path: Path) -> None:
    source = cached_source(tmp_path)
    for batch in flat(source, 0, 4):
        for row, index in enumerate(batch.indices):
            ids, pairs = scene(index)
            expected = torch.stack([torch.from_numpy(ids == identity) for identity, _ in pairs])
            assert torch.equal(batch.targets[row].masks, expected)
            assert batch.targets[row].labels.tolist() == [category for _, category in pairs]
            image = torch.from_numpy(FakeDataset().image(index)).permute(2, 0, 1).float()
            assert torch.equal(batch.backbone[0][row], pooled(image[None])[0].bfloat16().float())


@pytest.mark.parametrize("with_sam", [False, True])
def test_cached_stages_of_clip_end_with_its_dense_map(tmp_path: Path, with_sam: bool) -> None:
    dataset, strides = FakeDataset(), (2, 4, 4, 8)
    cache_features(
        encode=lambda images: [avg_pool2d(images, stride) for stride in strides],
        dataset=dataset,
        out=tmp_path / "clip",
        tower_hash="t",
        flipped=False,
        batch_size=4,
        workers=0,
    )
    source = CachedSource(
        sam=cache(tmp_path / "sam", dataset) if with_sam else None,
        clip=CachedFeatures.open(tmp_path / "clip", dataset_content="data-1", tower_hash="t"),
        dataset=dataset,
        training=params(),
        process=single_process("cpu"),
        seed=2,
    )
    for batch in flat(source, 0, 2):
        for row, index in enumerate(batch.indices):
            image = torch.from_numpy(dataset.image(index)).permute(2, 0, 1).float()[None]
            stages = [avg_pool2d(image, stride)[0].bfloat16().float() for stride in strides]
            assert torch.equal(batch.clip_features[row], stages[-1])
            masks_from = [pooled(image)[0].bfloat16().float()] if with_sam else stages
            assert len(batch.backbone) == len(masks_from)
            for level, expected in zip(batch.backbone, masks_from, strict=True):
                assert torch.equal(level[row], expected)


def test_mirrored_samples_mirror_features_and_masks_together(tmp_path: Path) -> None:
    source = cached_source(tmp_path, "flip")
    seen = set()
    for batch in flat(source, 0, 10):
        for row, index in enumerate(batch.indices):
            image = torch.from_numpy(FakeDataset().image(index)).permute(2, 0, 1).float()
            mirror = not torch.equal(
                batch.backbone[0][row], pooled(image[None])[0].bfloat16().float()
            )
            seen.add((index, mirror))
            straight = source.target(index).masks
            expected = straight.flip(-1) if mirror else straight
            assert torch.equal(batch.targets[row].masks, expected)
            if mirror:
                features = pooled(image.flip(-1)[None])[0].bfloat16().float()
                assert torch.equal(batch.backbone[0][row], features)
    assert {mirror for _, mirror in seen} == {True, False}
    assert len(seen) > 6  # the same image comes both ways


@pytest.mark.parametrize("policy", ["none", "flip"])
def test_cached_batches_do_not_depend_on_where_one_starts(tmp_path: Path, policy: str) -> None:
    source = cached_source(tmp_path, policy)
    everything = flat(source, 0, 6)
    late = flat(source, 4, 6)
    assert all(equal(one, two) for one, two in zip(everything[4:], late, strict=True))


def test_crowds_are_no_targets(tmp_path: Path) -> None:
    source = cached_source(tmp_path, dataset=FakeDataset(crowd=True))
    for index in range(6):
        assert len(source.target(index).labels) == len(scene(index)[1]) - 1


def test_caches_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no mirrored images"):
        cached_source(tmp_path, "flip", flipped=False)
    with pytest.raises(InputError, match="lsj"):
        cached_source(tmp_path, "lsj")
    short = cache(tmp_path / "short", FakeDataset(count=5))
    with pytest.raises(InputError, match=r"short: 5 images"):
        CachedSource(
            sam=short,
            clip=short,
            dataset=FakeDataset(),
            training=params(),
            process=single_process("cpu"),
            seed=2,
        )


def towers(images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Pads to a multiple of 8 as the segmenter does."""
    height, width = (-(-side // 8) * 8 for side in images.shape[-2:])
    padded = pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
    return (avg_pool2d(padded, 4),), avg_pool2d(padded, 8).bfloat16()


def live_source(
    policy: str,
    *,
    dataset: FakeDataset | None = None,
    process: TrainingProcess | None = None,
    **changes: Any,
) -> LiveSource:
    sizes = {"size": 16, "min_scale": 0.5, "max_scale": 2.0}
    training = params(policy, sizes, **{"batch_size": 3, "micro_batch": 3, **changes})
    return LiveSource(
        dataset=dataset or FakeDataset(),
        encode=towers,
        multiple=8,
        padding=(124, 116, 104),
        training=training,
        process=process or single_process("cpu"),
        seed=4,
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_live_batches_do_not_depend_on_start_workers_or_processes(workers: int) -> None:
    split = {"batch_size": 4, "micro_batch": 1}
    everything = list(live_source("lsj", **split).batches(0, 5))
    assert [len(batches) for batches in everything] == [4] * 5
    second = TrainingProcess(device=torch.device("cpu"), rank=1, world_size=2)
    late = live_source("lsj", process=second, workers=workers, **split)
    for whole, own in zip(everything[3:], late.batches(3, 5), strict=True):
        assert all(equal(one, two) for one, two in zip(whole[2:], own, strict=True))


def test_a_signal_to_every_process_of_a_job_leaves_the_workers_reading() -> None:
    """SLURM warns before a time limit with SIGUSR2, which ends a process by default."""
    batches = live_source("none", workers=1).batches(0, 3)
    next(batches)
    workers = multiprocessing.active_children()
    assert len(workers) == 1
    server, tracker = forkserver._forkserver, resource_tracker._resource_tracker
    for process in (workers[0].pid, server._forkserver_pid, tracker._pid):
        os.kill(process, signal.SIGUSR2)
    assert len(list(batches)) == 2
    assert len(list(live_source("none", workers=1).batches(0, 2))) == 2


def test_live_augmentation_changes_from_epoch_to_epoch() -> None:
    batches = flat(live_source("lsj", dataset=FakeDataset(count=1)), 0, 2)
    assert not torch.equal(batches[0].backbone[0], batches[1].backbone[0])


def test_live_masks_cover_the_padded_extent_of_the_features() -> None:
    dataset = FakeDataset(sizes={0: (17, 16), 1: (16, 20)})
    for batch in flat(live_source("none", dataset=dataset), 0, 4):
        height, width = (4 * side for side in batch.backbone[0].shape[-2:])
        assert batch.clip_features.dtype == torch.float32
        for index, target in zip(batch.indices, batch.targets, strict=True):
            assert target.masks.shape[1:] == (height, width)
            segments = [(s.id, s.category) for s in dataset.images[index].segments]
            original = target_from_ids(dataset.panoptic(index), segments)
            rows, columns = original.masks.shape[1:]
            assert torch.equal(target.masks[:, :rows, :columns], original.masks)
            assert not target.masks[:, rows:].any() and not target.masks[:, :, columns:].any()


def test_live_source_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(live_source("lsj").batches(0, 2))
    assert torch.equal(before, torch.get_rng_state())


def test_compact_records_are_the_records() -> None:
    records = FakeDataset(sizes={2: (20, 30)}, crowd=True).images
    records = (*records, replace(records[0], segments=()))
    compact = CompactRecords(records)
    assert len(compact) == len(records) == 7
    assert tuple(compact) == tuple(records)
    assert compact[-1] == records[-1] and compact[1:3] == list(records[1:3])
    with pytest.raises(IndexError):
        compact[7]


def test_a_process_of_cached_features_has_its_own_micro_batches(tmp_path: Path) -> None:
    features = cache(tmp_path / "cache", FakeDataset())

    def source(rank: int = 0, world_size: int = 1) -> CachedSource:
        return CachedSource(
            sam=features,
            clip=features,
            dataset=FakeDataset(),
            training=params("flip", batch_size=4, micro_batch=2),
            process=TrainingProcess(device=torch.device("cpu"), rank=rank, world_size=world_size),
            seed=2,
        )

    own = [source(rank, 2) for rank in range(2)]
    for whole, *shards in zip(*(s.batches(1, 4) for s in (source(), *own)), strict=True):
        assert all(map(equal, whole, [batch for shard in shards for batch in shard]))
