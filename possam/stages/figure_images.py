"""Rows of pictures for the figures: images drawn by lot, with what the models make of them.

Loads the models' libraries; the stage imports it only for figures that need them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.modeling import Sam
from torch import Tensor

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.clusters import cluster_features, matched_labels
from possam.evaluation.segment import segment_image
from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.sam import SamEncoder
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import Geometry
from possam.model.resolution import pad_image, resize_for_test
from possam.model.segmenter import Segmenter
from possam.params.figures import (
    CLIP,
    ClustersParams,
    ImagesParams,
    OversegmentationParams,
    QualitativeParams,
)
from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.figures.panels import Panel, Row
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file
from possam.stages.common import (
    embed_names,
    finished_run,
    frozen_hashes,
    load_clip_tower,
    load_towers,
    load_whole_sam,
    tower_hash,
)
from possam.training.checkpoint import load_trained

_LEGEND_NOTE = "colours only tell clusters and masks apart; the legend is of the ground truth."


@dataclass(kw_only=True)
class Pictures:
    """What a figure of images shows, and where it is from.

    Attributes:
        rows: one an image; columns: titles of their panels.
        note: how it was made, for readers.
        facts: the same for machines, a part of the card.
    """

    rows: list[Row]
    columns: list[str]
    note: str
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """Images of one benchmark, drawn by lot."""

    benchmark: str
    dataset: ConvertedDataset
    positions: list[int]
    synthetic: bool

    def row(self, position: int, panels: Sequence[Panel], unseen: frozenset[int]) -> Row:
        record = self.dataset.images[position]
        kind = "synthetic " if self.synthetic else ""
        return Row(
            image=self.dataset.image(position),
            name=record.file.stem,
            source=f"{kind}{self.dataset.name}, {self.dataset.split}",
            panels=panels,
            names={category.index: category.names[0] for category in self.dataset.categories},
            unseen=unseen,
        )

    def truth(self, position: int) -> Panel:
        record = self.dataset.images[position]
        segments = {s.id: s.category for s in record.segments if not s.is_crowd}
        caption = _count(len(segments), "segment")
        return Panel(ids=self.dataset.panoptic(position), segments=dict(segments), caption=caption)

    def entry(
        self, position: int, panels: Sequence[Panel], columns: Sequence[str]
    ) -> dict[str, Any]:
        """The image in the card."""
        record = self.dataset.images[position]
        shown = {name: panel.caption for name, panel in zip(columns, panels, strict=True)}
        return {
            "benchmark": self.benchmark,
            "id": record.id,
            "file": record.file.name,
            "position": position,
            "panels": shown,
        }


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _draw_lots(project: Project, params: ImagesParams, benchmark: str) -> _Drawn:
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
    return _Drawn(
        benchmark=benchmark,
        dataset=dataset,
        positions=chosen.tolist(),
        synthetic=project.scale.synthetic,
    )


def _collect(
    params: ImagesParams,
    lots: Sequence[tuple[_Drawn, frozenset[int]]],
    columns: Sequence[str],
    make: Callable[[_Drawn, int], list[Panel]],
    *,
    note: str,
    facts: dict[str, Any],
) -> Pictures:
    rows, entries = [], []
    for drawn, unseen in lots:
        for position in drawn.positions:
            panels = make(drawn, position)
            rows.append(drawn.row(position, panels, unseen))
            entries.append(drawn.entry(position, panels, columns))
    lot = ", ".join(
        f"{params.images} of the {len(drawn.dataset)} of {drawn.benchmark}" for drawn, _ in lots
    )
    rule = f"Images drawn by lot with seed {params.seed}: {lot}."
    totals = {
        name: sum(len(row.panels[place].segments) for row in rows)
        for place, name in enumerate(columns)
    }
    contents = {drawn.benchmark: drawn.dataset.manifest["content"] for drawn, _ in lots}
    return Pictures(
        rows=rows,
        columns=list(columns),
        note=f"{rule} {note} Crowd regions of the ground truth are shown as no segment.",
        facts={
            "images": entries,
            "image_rule": rule,
            "image_seed": params.seed,
            "segments": totals,
            "datasets": contents,
            **facts,
        },
    )


class _Trained:
    """A trained run, ready to segment the images of any benchmark."""

    def __init__(self, project: Project, name: str, *, device: str) -> None:
        self.project, self.name, self.seed = project, name, project.scale.seeds[0]
        layout, run = Layout(project), project.run(name)
        record = finished_run(layout, name, self.seed)
        weights = layout.run(name, self.seed) / "weights.safetensors"
        frozen = frozen_hashes(layout, run.sam)
        self.vocabulary = [tuple(names) for names in record["vocabulary"]]
        sam, clip = load_towers(layout, run.sam)
        self.segmenter = Segmenter(
            sam=sam,
            clip=clip,
            possam=load_trained(weights, frozen=frozen),
            precision=project.scale.towers.precision,
        ).to(device)
        self.facts: dict[str, Any] = {
            "runs": {
                name: {
                    "seed": self.seed,
                    "identity": record["identity"],
                    "weights_sha256": sha256_file(weights),
                }
            },
            "towers": frozen,
            "inference": project.scale.inference.model_dump(mode="json"),
            "templates": list(project.scale.templates),
        }
        self._texts: dict[str, TextEmbeddings] = {}
        self.note = (
            f"PosSAM: run {name}, training seed {self.seed}. (unseen): no name of the class is a "
            "name of a training class. Numbers and colours of classes hold within a row."
        )

    def seen(self, dataset: ConvertedDataset) -> list[bool]:
        return seen_classes(dataset.vocabulary, self.vocabulary)

    def unseen(self, dataset: ConvertedDataset) -> frozenset[int]:
        return frozenset(k for k, seen in enumerate(self.seen(dataset)) if not seen)

    def panel(self, dataset: ConvertedDataset, position: int) -> Panel:
        scale = self.project.scale
        if dataset.name not in self._texts:
            self._texts[dataset.name] = embed_names(
                Layout(self.project),
                self.segmenter.clip,
                dataset.vocabulary,
                templates=scale.templates,
            )
        ids, segments = segment_image(
            dataset.image(position),
            segmenter=self.segmenter,
            text=self._texts[dataset.name],
            things=[category.is_thing for category in dataset.categories],
            seen=self.seen(dataset),
            inference=scale.inference,
        )
        found = {segment.id: segment.category for segment in segments}
        return Panel(ids=ids, segments=dict(found), caption=_count(len(found), "segment"))


def _masks_panel(project: Project, sam: Sam, image: NDArray[np.uint8]) -> Panel:
    """SAM's automatic masks, smaller ones over larger ones."""
    masks = automatic_masks(sam, image, project.scale.automatic_masks)
    ids = np.zeros(image.shape[:2], dtype=np.int32)
    for number, mask in enumerate(masks, start=1):
        ids[mask] = number
    segments = dict.fromkeys(range(1, len(masks) + 1))
    return Panel(ids=ids, segments=segments, caption=_count(len(masks), "mask"))


def _masks_note(project: Project) -> str:
    settings = project.scale.automatic_masks
    side = settings.points_per_side
    return (
        f"SAM's automatic masks: {side} x {side} points as prompts, predicted IoU above "
        f"{settings.iou_threshold:g}, stability at least {settings.stability_threshold:g}, "
        f"non-maximum suppression of boxes at IoU {settings.nms_threshold:g}. They have no "
        "classes; smaller ones are drawn over larger ones."
    )


def oversegmentation(project: Project, params: OversegmentationParams, *, device: str) -> Pictures:
    """SAM's automatic masks, PosSAM's segments and the ground truth of each image."""
    size = project.run(params.run).sam
    if size is None:
        raise InputError(
            f"{project.folder / 'figures.yaml'}: run: {params.run!r} has no SAM, whose masks this "
            "figure shows; name a run with one"
        )
    drawn = _draw_lots(project, params, params.benchmark)
    trained = _Trained(project, params.run, device=device)
    sam = load_whole_sam(Layout(project), size).to(device)

    def make(drawn: _Drawn, position: int) -> list[Panel]:
        masks = _masks_panel(project, sam, drawn.dataset.image(position))
        return [masks, trained.panel(drawn.dataset, position), drawn.truth(position)]

    pictures = _collect(
        params,
        [(drawn, trained.unseen(drawn.dataset))],
        ["SAM, automatic masks", "PosSAM", "ground truth"],
        make,
        note=f"{_masks_note(project)} {trained.note}",
        facts={
            **trained.facts,
            "automatic_masks": project.scale.automatic_masks.model_dump(mode="json"),
        },
    )
    masks, ours, truth = pictures.facts["segments"].values()
    pictures.note += (
        f" In all {masks} masks of SAM, {ours} segments of PosSAM, {truth} in the ground truth."
    )
    return pictures


def qualitative(project: Project, params: QualitativeParams, *, device: str) -> Pictures:
    """PosSAM's segments and the ground truth, images of every benchmark."""
    lots = [_draw_lots(project, params, benchmark) for benchmark in params.benchmarks]
    trained = _Trained(project, params.run, device=device)
    return _collect(
        params,
        [(drawn, trained.unseen(drawn.dataset)) for drawn in lots],
        ["PosSAM", "ground truth"],
        lambda drawn, position: [trained.panel(drawn.dataset, position), drawn.truth(position)],
        note=trained.note,
        facts=trained.facts,
    )


@dataclass(frozen=True, kw_only=True)
class _Clusters:
    """Clusters of one frozen tower's features; ``encode``: images to (B, C, h, w)."""

    project: Project
    params: ClustersParams
    encode: Callable[[Tensor], Tensor]
    stride: int
    device: str

    def labels(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """(H,W), 1 to k, of an RGB image (H,W,3)."""
        test = resize_for_test(
            torch.from_numpy(image).permute(2, 0, 1),
            self.project.scale.inference.resolution,
        )
        height, width = test.pixels.shape[1:]
        padded = (height + -height % self.stride, width + -width % self.stride)
        with torch.inference_mode():
            features = self.encode(pad_image(test.pixels[None], padded).to(self.device))[0].cpu()
        return cluster_features(
            features,
            clusters=self.params.clusters,
            seed=self.params.seed,
            geometry=Geometry(padded, test.content_size, test.original_size),
        )

    def panel(self, labels: NDArray[np.int32]) -> Panel:
        segments = dict.fromkeys(range(1, self.params.clusters + 1))
        return Panel(ids=labels, segments=segments, caption=_count(len(segments), "cluster"))

    @property
    def note(self) -> str:
        return (
            f"Clusters: k-means with k = {self.params.clusters} (seed {self.params.seed}) over "
            "each image's own features, brought to unit norm; a pixel takes the centre nearest to "
            "its interpolated feature."
        )


def _sam_clusters(project: Project, params: ClustersParams, sam: Sam, *, device: str) -> _Clusters:
    encoder = SamEncoder(sam.image_encoder).to(device)
    return _Clusters(
        project=project, params=params, encode=encoder, stride=encoder.stride, device=device
    )


def feature_clusters(project: Project, params: ClustersParams, *, device: str) -> Pictures:
    """Clusters of SAM's and of CLIP's features, and the ground truth of each image."""
    layout = Layout(project)
    clip = load_clip_tower(layout).to(device)
    ours = _sam_clusters(project, params, load_whole_sam(layout, params.sam), device=device)
    theirs = _Clusters(
        project=project, params=params, encode=clip.encode_dense, stride=clip.stride, device=device
    )

    def make(drawn: _Drawn, position: int) -> list[Panel]:
        image = drawn.dataset.image(position)
        labels = ours.labels(image)
        matched = matched_labels(theirs.labels(image), labels, clusters=params.clusters)
        return [ours.panel(labels), theirs.panel(matched), drawn.truth(position)]

    return _collect(
        params,
        [(_draw_lots(project, params, params.benchmark), frozenset())],
        ["SAM encoder", "CLIP", "ground truth"],
        make,
        note=f"{ours.note} CLIP's clusters take the colours of the SAM clusters that they overlap "
        f"most; {_LEGEND_NOTE}",
        facts={"towers": {"sam": tower_hash(layout, params.sam), CLIP: tower_hash(layout, CLIP)}},
    )


def encoder_vs_decoder(project: Project, params: ClustersParams, *, device: str) -> Pictures:
    """Clusters of SAM's features, its automatic masks, and the ground truth of each image."""
    layout = Layout(project)
    sam = load_whole_sam(layout, params.sam).to(device)
    ours = _sam_clusters(project, params, sam, device=device)

    def make(drawn: _Drawn, position: int) -> list[Panel]:
        image = drawn.dataset.image(position)
        masks = _masks_panel(project, sam, image)
        return [ours.panel(ours.labels(image)), masks, drawn.truth(position)]

    return _collect(
        params,
        [(_draw_lots(project, params, params.benchmark), frozenset())],
        ["SAM encoder, clusters", "SAM decoder, masks", "ground truth"],
        make,
        note=f"{ours.note} {_masks_note(project)} In both, {_LEGEND_NOTE}",
        facts={
            "towers": {"sam": tower_hash(layout, params.sam)},
            "automatic_masks": project.scale.automatic_masks.model_dump(mode="json"),
        },
    )


BY_KIND: dict[str, Callable[..., Pictures]] = {
    "oversegmentation": oversegmentation,
    "feature_clusters": feature_clusters,
    "encoder_vs_decoder": encoder_vs_decoder,
    "qualitative": qualitative,
}
"""What makes each kind of figure; arguments: project, the kind's parameters, ``device``."""
