"""Data sets with a label map and no instances: each class's pixels are one stuff segment."""

from collections.abc import Mapping, Sequence

from possam.datasets.label_runs import segment_table
from possam.datasets.pixels import Array
from possam.datasets.records import Category, Converted, Segment


def stuff_categories(
    names: Mapping[int, tuple[str, ...]], upstream_ids: Sequence[int]
) -> list[Category]:
    """Classes in the order of ``names`` (class-name file), all stuff."""
    return [
        Category(index=index, names=synonyms, is_thing=False, upstream_id=upstream)
        for index, (synonyms, upstream) in enumerate(zip(names.values(), upstream_ids, strict=True))
    ]


def convert_regions(labels: Array, *, image: str | bytes) -> Converted:
    """One image from its label map.

    Args:
        labels: class indices, int32 (H, W), -1 void; segment ids are class index + 1.
        image: see :class:`possam.datasets.records.Converted`.
    """
    ids = labels + 1
    segments = tuple(
        Segment(id=key, category=key - 1, area=area, bbox=box)
        for key, area, box in segment_table(ids)
    )
    height, width = labels.shape
    return Converted(
        width=width,
        height=height,
        image=image,
        ids=ids,
        semantic=labels,
        segments=segments,
        instances=[],
    )
