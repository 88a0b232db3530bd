"""Rows of pictures: images of a benchmark drawn by lot, with panels, a note and a card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from possam.datasets.format import ConvertedDataset
from possam.model.options import AutomaticMaskOptions
from possam.params.figures import ImagesParams
from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.figures.panels import Panel, Row
from possam.runtime.errors import InputError


@dataclass(kw_only=True)
class Pictures:
    """What a figure of images shows, and where it is from.

    Attributes:
        rows: one per image; columns: titles of their panels.
        note: how it was made, for readers.
        facts: the same for machines, a part of the card.
    """

    rows: list[Row]
    columns: list[str]
    note: str
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DrawnImages:
    """Images of one benchmark, drawn by lot; ``unseen``: class indices that training did not know.

    Attributes:
        positions: of the images in ``dataset``, ascending.
        synthetic: whether the data set is of a synthetic scale.
    """

    benchmark: str
    dataset: ConvertedDataset
    positions: list[int]
    synthetic: bool
    unseen: frozenset[int] = frozenset()

    def row(self, position: int, panels: Sequence[Panel]) -> Row:
        """The image at ``position`` with its panels."""
        kind = "synthetic " if self.synthetic else ""
        return Row(
            image=self.dataset.image(position),
            name=self.dataset.images[position].file.stem,
            source=f"{kind}{self.dataset.name}, {self.dataset.split}",
            panels=panels,
            names={category.index: category.names[0] for category in self.dataset.categories},
            unseen=self.unseen,
        )

    def truth(self, position: int) -> Panel:
        """The ground truth's segments without crowd regions."""
        record = self.dataset.images[position]
        segments = {s.id: s.category for s in record.segments if not s.is_crowd}
        return panel(self.dataset.panoptic(position), segments, "segment")


def panel(ids: NDArray[np.integer], segments: dict[int, Any], what: str) -> Panel:
    """A panel whose caption counts the segments, each a ``what``."""
    count = len(segments)
    return Panel(ids=ids, segments=segments, caption=f"{count} {what}{'' if count == 1 else 's'}")


def draw_lots(project: Project, params: ImagesParams, benchmark: str) -> DrawnImages:
    """``params.images`` of the benchmark's images, each equally likely, in the data set's order.

    Raises:
        InputError: the benchmark has fewer images.
    """
    test = project.benchmarks[benchmark]
    dataset = ConvertedDataset.open(Layout(project).dataset(test.dataset, test.split))
    if len(dataset) < params.images:
        raise InputError(
            f"{project.folder / 'figures.yaml'}: images: {params.images} were asked for, but "
            f"benchmark {benchmark!r} has {len(dataset)} at scale {project.name}; lower the number"
        )
    generator = np.random.default_rng(params.seed)
    chosen = np.sort(generator.choice(len(dataset), size=params.images, replace=False))
    return DrawnImages(
        benchmark=benchmark,
        dataset=dataset,
        positions=chosen.tolist(),
        synthetic=project.scale.synthetic,
    )


def collect(
    params: ImagesParams,
    lots: Sequence[DrawnImages],
    columns: Sequence[str],
    make: Callable[[DrawnImages, int], list[Panel]],
    *,
    note: str,
    facts: dict[str, Any],
) -> Pictures:
    """All rows, with a note and facts that also say how the images were chosen.

    Args:
        columns: titles of the panels that ``make`` returns for the image at a position.
    """
    rows, entries = [], []
    for drawn in lots:
        for position in drawn.positions:
            panels = make(drawn, position)
            rows.append(drawn.row(position, panels))
            record, shown = drawn.dataset.images[position], zip(columns, panels, strict=True)
            entries.append(
                {
                    "benchmark": drawn.benchmark,
                    "id": record.id,
                    "file": record.file.name,
                    "position": position,
                    "panels": {name: panel.caption for name, panel in shown},
                }
            )
    lot = ", ".join(f"{params.images} of the {len(d.dataset)} of {d.benchmark}" for d in lots)
    rule = f"Images drawn by lot with seed {params.seed}: {lot}."
    return Pictures(
        rows=rows,
        columns=list(columns),
        note=f"{rule} {note} Crowd regions of the ground truth are shown as no segment.",
        facts={
            "images": entries,
            "image_rule": rule,
            "image_seed": params.seed,
            "segments": {
                name: sum(len(row.panels[column].segments) for row in rows)
                for column, name in enumerate(columns)
            },
            "datasets": {d.benchmark: d.dataset.manifest["content"] for d in lots},
            **facts,
        },
    )


def masks_panel(masks: NDArray[np.bool_]) -> Panel:
    """Masks (M,H,W) of an image, later ones over earlier ones."""
    ids = np.zeros(masks.shape[1:], dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    return panel(ids, dict.fromkeys(range(1, len(masks) + 1)), "mask")


def masks_note(settings: AutomaticMaskOptions) -> str:
    """How SAM's automatic masks were made."""
    side = settings.points_per_side
    return (
        f"SAM's automatic masks: {side} x {side} points as prompts, predicted IoU above "
        f"{settings.iou_threshold:g}, stability at least {settings.stability_threshold:g}, "
        f"non-maximum suppression of boxes at IoU {settings.nms_threshold:g}. They have no "
        "classes; smaller ones are drawn over larger ones."
    )


def clusters_note(clusters: int, seed: int) -> str:
    """How features were clustered."""
    return (
        f"Clusters: k-means with k = {clusters} (seed {seed}) over each image's own features, "
        "brought to unit norm; a pixel takes the centre nearest to its interpolated feature."
    )
