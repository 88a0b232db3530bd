"""The feature cache: what is read is what was encoded, and never of other towers or data."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from possam.runtime.errors import InputError, WrongVariantError
from possam.training.feature_cache import CachedFeatures, cache_features
from tests.support.training_fakes import FakeDataset


def encode(images: Tensor) -> tuple[Tensor, Tensor]:
    """Stands for a tower of two maps: strides 4 and 8, different for left and right."""
    ramped = images * torch.arange(images.shape[-1]).float()
    return avg_pool2d(ramped, 4), avg_pool2d(ramped, 8)[:, :2]


def write(out: Path, dataset: FakeDataset, **changes: Any) -> dict[str, Any]:
    options = {"encode": encode, "tower_hash": "tower-1", "flipped": True}
    options |= {"batch_size": 4, "workers": 0, **changes}
    return cache_features(dataset=dataset, out=out, **options)


def read(path: Path, **changes: str) -> CachedFeatures:
    return CachedFeatures.open(
        path, **{"dataset_content": "data-1", "tower_hash": "tower-1", **changes}
    )


@pytest.mark.parametrize(("workers", "batch_size"), [(0, 4), (0, 100), (1, 1)])
def test_round_trip_in_bfloat16(tmp_path: Path, workers: int, batch_size: int) -> None:
    dataset = FakeDataset()
    manifest = write(tmp_path / "cache", dataset, workers=workers, batch_size=batch_size)
    cache = read(tmp_path / "cache")
    assert manifest["shapes"] == [[6, 2, 3, 4, 4], [6, 2, 2, 2, 2]] and len(cache) == 6
    assert cache.image_size == (16, 16)
    order, mirrored = [4, 0, 4, 2], [False, True, True, False]
    found = cache.read(order, mirrored)
    for row, (index, mirror) in enumerate(zip(order, mirrored, strict=True)):
        image = torch.from_numpy(dataset.image(index)).permute(2, 0, 1).float()
        expected = encode((image.flip(-1) if mirror else image)[None])
        for level, wanted in zip(found, expected, strict=True):
            assert torch.equal(level[row], wanted[0].bfloat16().float())


def test_cache_of_another_tower_or_data_set_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "cache", FakeDataset())
    with pytest.raises(WrongVariantError, match=r"tower-1.*tower-2"):
        read(tmp_path / "cache", tower_hash="tower-2")
    with pytest.raises(InputError, match=r"data-1.*data-2"):
        read(tmp_path / "cache", dataset_content="data-2")


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"3\.png: 24 x 16 .*equal sizes"):
        write(tmp_path / "cache", FakeDataset(sizes={3: (16, 24)}))
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_stride_does_not_divide_are_refused(tmp_path: Path) -> None:
    sizes = dict.fromkeys(range(6), (18, 16))
    with pytest.raises(InputError, match="multiples of the towers' strides"):
        write(tmp_path / "cache", FakeDataset(sizes=sizes))
    assert list(tmp_path.iterdir()) == []


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not finite"):
        write(tmp_path / "cache", FakeDataset(), encode=lambda images: [encode(images)[0] / 0])


def test_room_is_reserved_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, writing to a memory map would kill the process."""
    sizes: list[int] = []

    def full(_: int, start: int, length: int) -> None:
        sizes.append(start + length)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "cache", FakeDataset())
    assert sizes[0] >= 6 * 2 * 3 * 4 * 4 * 2 and list(tmp_path.iterdir()) == []


def test_empty_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images"):
        write(tmp_path / "cache", FakeDataset(count=0))


def test_interrupted_writing_leaves_nothing(tmp_path: Path) -> None:
    calls: list[int] = []

    def failing(images: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", FakeDataset(), encode=failing)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".cache.0123abcd.tmp").mkdir()
    (tmp_path / ".cache2.0123abcd.tmp").mkdir()
    write(tmp_path / "cache", FakeDataset())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cache2.0123abcd.tmp", "cache"]


def test_damaged_caches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "absent")
    write(tmp_path / "cache", FakeDataset())
    features, manifest = tmp_path / "cache/map_1.npy", tmp_path / "cache/manifest.json"
    whole = features.read_bytes()
    features.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"map_1\.npy: damaged"):
        read(tmp_path / "cache")
    features.write_bytes(whole)
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "shapes": [[6, 1, 3, 4, 4]]}))
    with pytest.raises(InputError, match="but the manifest says"):
        read(tmp_path / "cache")
    manifest.write_text(json.dumps({**values, "format": "other"}))
    with pytest.raises(InputError, match="build the cache anew"):
        read(tmp_path / "cache")
