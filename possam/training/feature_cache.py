"""Features of frozen towers, computed once for whole images of one size and read memory-mapped.

A cache directory holds ``manifest.json`` and one file per map, ``map_0.npy`` and so on: (images,
1 or 2, C, h, w), uint16 views of bfloat16; the second entry of axis 1 is the mirrored image.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from possam.datasets.format import ConvertedDataset
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.files import (
    atomic_directory,
    read_json,
    remove_leftovers,
    sha256_file,
    write_json,
)
from possam.runtime.progress import Progress
from possam.runtime.reading import check_readable

FORMAT = "possam-features-3"


def _file(index: int) -> str:
    return f"map_{index}.npy"


class _Images(Dataset[Tensor]):
    def __init__(self, dataset: ConvertedDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self._dataset.image(index))).permute(2, 0, 1)


def _common_size(dataset: ConvertedDataset) -> tuple[int, int]:
    if not len(dataset):
        raise InputError(f"data set {dataset.name}: there are no images to cache features of")
    first = dataset.images[0]
    for record in dataset.images:
        if (record.height, record.width) != (first.height, first.width):
            raise InputError(
                f"{record.file}: {record.width} x {record.height} pixels, but {first.file} has "
                f"{first.width} x {first.height}: a feature cache needs images of equal sizes; "
                "set training.feature_cache: false for this data set"
            )
    return first.height, first.width


def _bits(features: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(B, C, h, w) features -> uint16 bits of bfloat16; an InputError unless they can be cached."""
    height, width = features.shape[-2:]
    if size[0] % height or size[1] % width or size[0] // height != size[1] // width:
        raise InputError(
            f"features of {height} x {width} do not cover images of {size[0]} x {size[1]} pixels "
            "exactly: cached images need sides that are multiples of the towers' strides; set "
            "training.feature_cache: false"
        )
    if not torch.isfinite(features).all():
        raise InputError("a frozen tower gave features that are not finite; check its weights")
    return features.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy()


@torch.no_grad()
def cache_features(
    *,
    encode: Callable[[Tensor], Sequence[Tensor]],
    dataset: ConvertedDataset,
    out: Path,
    tower_hash: str,
    flipped: bool,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """Encode every image of ``dataset`` and write the cache directory ``out`` atomically.

    Args:
        encode: (B, 3, H, W) float32 in 0..255, RGB, on the CPU -> a fixed number of maps
            (B, C, h, w), on any device.
        out: the cache directory; an older one is replaced.
        tower_hash: identity of the tower, checked by :meth:`CachedFeatures.open`.
        flipped: also store the features of the mirrored images (twice the time and space).
        batch_size: images per call of ``encode``.
        workers: processes that decode images (0: this process does).

    Returns:
        The manifest.

    Raises:
        InputError: images of different sizes, a size that the strides do not divide, or features
            that are not finite.
    """
    size = _common_size(dataset)
    remove_leftovers(Path(out).parent, of=Path(out).name)
    loader: Iterable[Tensor] = DataLoader(
        _Images(dataset), batch_size=batch_size, num_workers=workers, generator=torch.Generator()
    )
    with (
        atomic_directory(out) as temporary,
        Progress(
            len(dataset), label=f"features of {out.parent.name} on {dataset.name}", unit="images"
        ) as progress,
    ):
        stores: list[np.memmap] = []
        position = 0
        for block in loader:
            images = block.float()
            views = [images, images.flip(-1)] if flipped else [images]
            encoded = [[_bits(level, size) for level in encode(view)] for view in views]
            for index, level in enumerate(zip(*encoded, strict=True)):
                bits = np.stack(level, axis=1)
                if index == len(stores):
                    stores.append(_create(temporary / _file(index), len(dataset), bits.shape[1:]))
                stores[index][position : position + len(bits)] = bits
            position += len(block)
            progress.update(len(block))
        for store in stores:
            store.flush()
        manifest = {
            "format": FORMAT,
            "dataset": dataset.name,
            "split": dataset.split,
            "dataset_content": dataset.manifest["content"],
            "tower": tower_hash,
            "flipped": flipped,
            "shapes": [list(store.shape) for store in stores],
            "dtype": "bfloat16",
            "image_size": list(size),
            "sha256": [sha256_file(temporary / _file(index)) for index in range(len(stores))],
        }
        write_json(temporary / "manifest.json", manifest)
    return manifest


def _create(path: Path, images: int, shape: tuple[int, ...]) -> np.memmap:
    store = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint16, shape=(images, *shape))
    # Without room, writing to a map would kill the process by a signal (SIGBUS).
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as stream:
            os.posix_fallocate(stream.fileno(), 0, path.stat().st_size)
    return store


@dataclass(frozen=True)
class CachedFeatures:
    """A cache opened for reading.

    Attributes:
        bits: one memory map per map of the tower: (images, 1 or 2, C, h, w) uint16.
        image_size: (H, W) of the encoded images.
        flipped: whether features of mirrored images are stored too.
    """

    path: Path
    bits: tuple[np.ndarray, ...]
    image_size: tuple[int, int]
    flipped: bool

    @staticmethod
    def open(path: str | Path, *, dataset_content: str, tower_hash: str) -> "CachedFeatures":
        """Open ``path``, which must have been made from this data set by this tower.

        Raises:
            InputError: missing, damaged, or made from another data set.
            WrongVariantError: made by another tower; the message names both hashes.
        """
        path = Path(path)
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise InputError(f"{path}/manifest.json: not a {FORMAT} manifest; build the cache anew")
        if manifest["dataset_content"] != dataset_content:
            raise InputError(
                f"{path}: features of data {manifest['dataset_content']}, but the data set is "
                f"{dataset_content}; build the cache anew"
            )
        if manifest["tower"] != tower_hash:
            raise WrongVariantError(
                f"{path}: features of tower {manifest['tower']}, but the tower is {tower_hash}; "
                "build the cache anew"
            )
        maps = tuple(
            _open_map(path / _file(index), shape) for index, shape in enumerate(manifest["shapes"])
        )
        height, width = manifest["image_size"]
        return CachedFeatures(path, maps, (height, width), manifest["flipped"])

    def __len__(self) -> int:
        return len(self.bits[0])

    def read(
        self, indices: Sequence[int], mirrored: Sequence[bool], *, maps: slice = slice(None)
    ) -> tuple[Tensor, ...]:
        """Maps of the images ``indices``, mirrored or not: (B, C, h, w) float32 each."""
        rows = np.asarray(indices), np.asarray(mirrored, dtype=np.int64)
        blocks = [torch.from_numpy(level[rows]) for level in self.bits[maps]]
        return tuple(block.view(torch.bfloat16).float() for block in blocks)


def _open_map(path: Path, shape: list[int]) -> np.ndarray:
    check_readable(path, missing="build the cache anew")
    try:
        bits: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: damaged ({error}); build the cache anew") from error
    if list(bits.shape) != shape or bits.dtype != np.uint16:
        raise InputError(
            f"{path}: {bits.dtype} {list(bits.shape)}, but the manifest says uint16 {shape}; "
            "build the cache anew"
        )
    return bits
