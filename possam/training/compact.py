"""The records of a large data set in a few arrays."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

import torch

from possam.datasets.format import ImageRecord, Segment


class CompactRecords(Sequence[ImageRecord]):
    """Image records, held in tensors and made as they are asked for.

    Hundreds of thousands of records with a dozen segments each are gigabytes of Python objects, of
    which every worker process would get its own copy. Tensors lie in memory that workers share.
    """

    def __init__(self, records: Sequence[ImageRecord]) -> None:
        segments = [segment for record in records for segment in record.segments]
        paths = [
            str(path).encode()
            for record in records
            for path in (record.file, record.panoptic, record.semantic)
        ]
        self._numbers = torch.tensor(
            [(record.id, record.height, record.width) for record in records], dtype=torch.int64
        )
        self._first = _starts([len(record.segments) for record in records])
        self._segments = torch.tensor(
            [(s.id, s.category, s.area, *s.bbox, s.is_crowd) for s in segments], dtype=torch.int64
        )
        self._paths = torch.frombuffer(bytearray(b"".join(paths)), dtype=torch.uint8)
        self._first_byte = _starts([len(path) for path in paths])

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageRecord]: ...
    def __getitem__(self, index: int | slice) -> ImageRecord | list[ImageRecord]:
        if isinstance(index, slice):
            return [self._record(number) for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._record(index % len(self))

    def _record(self, index: int) -> ImageRecord:
        identity, height, width = self._numbers[index].tolist()
        first, stop = self._first[index : index + 2].tolist()
        rows = self._segments[first:stop].tolist()
        file, panoptic, semantic = (self._path(3 * index + which) for which in range(3))
        return ImageRecord(
            id=identity,
            file=file,
            width=width,
            height=height,
            panoptic=panoptic,
            semantic=semantic,
            segments=tuple(
                Segment(
                    id=number, category=category, area=area, bbox=(x, y, w, h), is_crowd=bool(crowd)
                )
                for number, category, area, x, y, w, h, crowd in rows
            ),
        )

    def _path(self, number: int) -> Path:
        first, stop = self._first_byte[number : number + 2].tolist()
        return Path(self._paths[first:stop].numpy().tobytes().decode())


def _starts(lengths: Sequence[int]) -> torch.Tensor:
    """Where each of the pieces begins that lie one after another, and where the last ends."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int64)
