"""Stage ``figure``: the pictures for each kind of figure that shows images.

Loads the models' libraries; the stage imports it only for figures that need them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from possam.datasets.class_names import seen_classes
from possam.datasets.format import ConvertedDataset
from possam.evaluation.clusters import FeatureClusters, matched_labels
from possam.evaluation.segment import segment_image
from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.sam import SamEncoder
from possam.model.encoders.text import TextEmbeddings
from possam.params.figures import CLIP, ClustersParams, OversegmentationParams, QualitativeParams
from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.figures.panels import (
    DrawnImages,
    Panel,
    Pictures,
    clusters_note,
    collect,
    draw_lots,
    masks_note,
    masks_panel,
    panel,
)
from possam.runtime.errors import InputError
from possam.runtime.files import sha256_file
from possam.stages.common import finished_run, frozen_hashes, tower_hash
from possam.stages.models import (
    embed_names,
    load_clip_tower,
    load_sam_tower,
    load_segmenter,
    load_whole_sam,
)

_LEGEND_NOTE = "colours only tell clusters and masks apart; the legend is of the ground truth."


class _Trained:
    """A trained run, ready to segment the images of any benchmark."""

    def __init__(self, project: Project, name: str, *, device: str) -> None:
        self.project, self.name, self.seed = project, name, project.scale.seeds[0]
        layout, run = Layout(project), project.run(name)
        record = finished_run(layout, name, self.seed)
        weights = layout.run(name, self.seed) / "weights.safetensors"
        self.vocabulary = [tuple(names) for names in record["vocabulary"]]
        self.segmenter = load_segmenter(layout, run.sam, weights).to(device)
        facts = {"identity": record["identity"], "weights_sha256": sha256_file(weights)}
        self.facts: dict[str, Any] = {
            "runs": {name: {"seed": self.seed, **facts}},
            "towers": frozen_hashes(layout, run.sam),
            "inference": project.scale.inference.model_dump(mode="json"),
            "templates": list(project.scale.templates),
        }
        self._texts: dict[str, TextEmbeddings] = {}
        self.note = (
            f"PosSAM: run {name}, training seed {self.seed}. (unseen): no name of the class is a "
            "name of a training class. Numbers and colours of classes hold within a row."
        )

    def mark_unseen(self, drawn: DrawnImages) -> DrawnImages:
        """The images, with the classes that the run was not trained on."""
        seen = seen_classes(drawn.dataset.vocabulary, self.vocabulary)
        return replace(drawn, unseen=frozenset(k for k, known in enumerate(seen) if not known))

    def panel(self, dataset: ConvertedDataset, position: int) -> Panel:
        scale = self.project.scale
        if dataset.name not in self._texts:
            layout, names, clip = Layout(self.project), dataset.vocabulary, self.segmenter.clip
            text = embed_names(layout, clip, names, templates=scale.templates)
            self._texts[dataset.name] = text
        ids, segments = segment_image(
            dataset.image(position),
            segmenter=self.segmenter,
            text=self._texts[dataset.name],
            things=[category.is_thing for category in dataset.categories],
            seen=seen_classes(dataset.vocabulary, self.vocabulary),
            inference=scale.inference,
        )
        return panel(ids, {segment.id: segment.category for segment in segments}, "segment")


def oversegmentation(project: Project, params: OversegmentationParams, *, device: str) -> Pictures:
    """SAM's automatic masks, PosSAM's segments and the ground truth of each image."""
    size, settings = project.run(params.run).sam, project.scale.automatic_masks
    if size is None:
        raise InputError(
            f"{project.folder / 'figures.yaml'}: run: {params.run!r} has no SAM, whose masks this "
            "figure shows; name a run with one"
        )
    drawn = draw_lots(project, params, params.benchmark)
    trained = _Trained(project, params.run, device=device)
    sam = load_whole_sam(Layout(project), size).to(device)

    def make(drawn: DrawnImages, position: int) -> list[Panel]:
        masks = masks_panel(automatic_masks(sam, drawn.dataset.image(position), settings).masks)
        return [masks, trained.panel(drawn.dataset, position), drawn.truth(position)]

    pictures = collect(
        params,
        [trained.mark_unseen(drawn)],
        ["SAM, automatic masks", "PosSAM", "ground truth"],
        make,
        note=f"{masks_note(settings)} {trained.note}",
        facts={**trained.facts, "automatic_masks": settings.model_dump(mode="json")},
    )
    masks, ours, truth = pictures.facts["segments"].values()
    pictures.note += (
        f" In all {masks} masks of SAM, {ours} segments of PosSAM, {truth} in the ground truth."
    )
    return pictures


def qualitative(project: Project, params: QualitativeParams, *, device: str) -> Pictures:
    """PosSAM's segments and the ground truth of images of every benchmark."""
    lots = [draw_lots(project, params, benchmark) for benchmark in params.benchmarks]
    trained = _Trained(project, params.run, device=device)
    return collect(
        params,
        [trained.mark_unseen(drawn) for drawn in lots],
        ["PosSAM", "ground truth"],
        lambda drawn, position: [trained.panel(drawn.dataset, position), drawn.truth(position)],
        note=trained.note,
        facts=trained.facts,
    )


def _clusters(
    project: Project, params: ClustersParams, encode: Any, *, stride: int, device: str
) -> FeatureClusters:
    return FeatureClusters(
        encode=encode,
        stride=stride,
        resolution=project.scale.inference.resolution,
        padding=project.scale.model.padding,
        clusters=params.clusters,
        seed=params.seed,
        device=device,
    )


def _clusters_panel(labels: NDArray[np.int32], params: ClustersParams) -> Panel:
    return panel(labels, dict.fromkeys(range(1, params.clusters + 1)), "cluster")


def feature_clusters(project: Project, params: ClustersParams, *, device: str) -> Pictures:
    """Clusters of SAM's and of CLIP's features, and the ground truth of each image."""
    layout = Layout(project)
    clip = load_clip_tower(layout).to(device)
    sam = load_sam_tower(layout, params.sam).to(device)
    ours = _clusters(project, params, sam, stride=sam.stride, device=device)
    theirs = _clusters(project, params, clip.encode_dense, stride=clip.stride, device=device)

    def make(drawn: DrawnImages, position: int) -> list[Panel]:
        image = drawn.dataset.image(position)
        labels = ours.labels(image)
        matched = matched_labels(theirs.labels(image), labels, clusters=params.clusters)
        clusters = [_clusters_panel(each, params) for each in (labels, matched)]
        return [*clusters, drawn.truth(position)]

    return collect(
        params,
        [draw_lots(project, params, params.benchmark)],
        ["SAM encoder", "CLIP", "ground truth"],
        make,
        note=f"{clusters_note(params.clusters, params.seed)} CLIP's clusters take the colours of "
        f"the SAM clusters that they overlap most; {_LEGEND_NOTE}",
        facts={"towers": {"sam": tower_hash(layout, params.sam), CLIP: tower_hash(layout, CLIP)}},
    )


def encoder_vs_decoder(project: Project, params: ClustersParams, *, device: str) -> Pictures:
    """Clusters of SAM's features, its automatic masks, and the ground truth of each image."""
    layout, settings = Layout(project), project.scale.automatic_masks
    sam = load_whole_sam(layout, params.sam).to(device)
    encoder = SamEncoder(sam.image_encoder).to(device)
    ours = _clusters(project, params, encoder, stride=encoder.stride, device=device)

    def make(drawn: DrawnImages, position: int) -> list[Panel]:
        image = drawn.dataset.image(position)
        masks = masks_panel(automatic_masks(sam, image, settings).masks)
        return [_clusters_panel(ours.labels(image), params), masks, drawn.truth(position)]

    return collect(
        params,
        [draw_lots(project, params, params.benchmark)],
        ["SAM encoder, clusters", "SAM decoder, masks", "ground truth"],
        make,
        note=f"{clusters_note(params.clusters, params.seed)} {masks_note(settings)} In both, "
        f"{_LEGEND_NOTE}",
        facts={
            "towers": {"sam": tower_hash(layout, params.sam)},
            "automatic_masks": settings.model_dump(mode="json"),
        },
    )


BY_KIND: dict[str, Callable[..., Pictures]] = {
    "oversegmentation": oversegmentation,
    "feature_clusters": feature_clusters,
    "encoder_vs_decoder": encoder_vs_decoder,
    "qualitative": qualitative,
}
"""The function for each kind of figure; it takes the project, the parameters and ``device``."""
