"""How cost grows: with the image's size, the number of classes, of queries, and of images."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case, Curve, free_memory_gib

if TYPE_CHECKING:
    from possam.model.segmenter import Segmenter
    from possam.params.project import Project

SIDES = (256, 384, 512, 768, 1024)
CLASSES = (150, 459, 847, 2000, 10_000)
"""ADE20K, PASCAL Context, ADE20K-Full, and more than any data set has."""

QUERIES = (50, 100, 200, 400)
IMAGES = (50, 100, 200, 400, 800)
ADE20K_CLASSES = 150
SPARE = 0.75
"""Share of the free memory that a reference may need; beyond it the system may kill processes."""

_SIDE = "side of the image (pixels)"


def cases() -> Iterator[Curve]:
    """PosSAM B with random weights, fp32, and the scoring of predictions on disk."""
    import torch

    from possam.params.project import Project
    from possam.pictures.load import random_segmenter

    project = Project("paper")
    segmenter = random_segmenter(project, "b", precision="fp32").eval().requires_grad_(False)
    with torch.inference_mode():
        yield network(segmenter, SIDES)
        yield post_processing(segmenter, project, SIDES)
        yield vocabularies(segmenter, project, CLASSES, side=SIDES[-1])
        yield queries(segmenter, project, QUERIES, side=SIDES[-1])
    del segmenter
    with tempfile.TemporaryDirectory() as folder:
        yield scoring(Path(folder), project, IMAGES)


def network(segmenter: "Segmenter", sides: Sequence[int]) -> Curve:
    """Towers and decoders against the side of a square image."""
    import torch

    generator = torch.Generator().manual_seed(1)
    points = {}
    for side in sides:
        image = torch.randint(0, 256, (1, 3, side, side), generator=generator).float()
        points[side] = Case(
            name=f"scaling/network_{side}", ours=partial(segmenter, image), unit="image"
        )
    return Curve(
        name="scaling/network",
        quantity=_SIDE,
        points=points,
        note="towers and decoders of PosSAM B; most layers are linear in the number of pixels "
        "(exponent 2), the global attention of SAM's encoder is quadratic in it (4)",
    )


def post_processing(segmenter: "Segmenter", project: "Project", sides: Sequence[int]) -> Curve:
    """Raw predictions to results, classification included, against the side of the image."""
    import torch

    from benchmarks.post_processing import PostProcessing, random_prediction

    masks = project.scale.model.queries
    points = {}
    for side in sides:
        generator = torch.Generator().manual_seed(2)
        raw = random_prediction(
            side, queries=masks, embed_dim=segmenter.clip.embed_dim, generator=generator
        )
        task = PostProcessing(
            raw,
            segmenter=segmenter,
            inference=project.scale.inference,
            classes=ADE20K_CLASSES,
            generator=generator,
        )
        points[side] = Case(name=f"scaling/post_processing_{side}", ours=task.ours, unit="image")
    return Curve(
        name="scaling/post_processing",
        quantity=_SIDE,
        points=points,
        note=f"classification, panoptic, instance and semantic results of {masks} masks and "
        f"{ADE20K_CLASSES} classes",
    )


def vocabularies(
    segmenter: "Segmenter", project: "Project", classes: Sequence[int], *, side: int
) -> Curve:
    """Post-processing against the number of classes, beside FC-CLIP's while that fits in memory."""
    import torch

    from benchmarks.post_processing import (
        DIFFERENCE,
        PostProcessing,
        difference,
        random_prediction,
    )

    masks = project.scale.model.queries
    generator = torch.Generator().manual_seed(2)
    raw = random_prediction(
        side, queries=masks, embed_dim=segmenter.clip.embed_dim, generator=generator
    )
    points = {}
    for number in classes:
        task = PostProcessing(
            raw,
            segmenter=segmenter,
            inference=project.scale.inference,
            classes=number,
            generator=generator,
        )
        free = free_memory_gib()
        fits = task.naive_gib <= SPARE * free
        left_out = (
            f"the reference is left out: its maps of all masks and classes take "
            f"{task.naive_gib:.1f} GiB, and {free:.1f} GiB were free"
        )
        points[number] = Case(
            name=f"scaling/classes_{number}",
            reference="FC-CLIP's post-processing: all masks at the image's size",
            ours=task.ours,
            theirs=task.naive if fits else None,
            error=(difference, DIFFERENCE),
            unit="image",
            note="" if fits else left_out,
        )
    return Curve(
        name="scaling/classes",
        quantity="classes",
        points=points,
        note=f"post-processing of {masks} masks at {side} x {side}, classification included",
    )


def queries(
    segmenter: "Segmenter", project: "Project", numbers: Sequence[int], *, side: int
) -> Curve:
    """Everything after the pixel decoder, against the number of queries."""
    import torch

    from benchmarks.post_processing import AfterPixelDecoder, PostProcessing
    from possam.model.possam import build_possam
    from possam.model.region_decoder import Mask2FormerDecoder
    from possam.model.segmenter import Segmenter
    from possam.stages.models import tower_widths

    towers: Any = segmenter.features
    decoder = segmenter.possam.decoder
    if not isinstance(decoder, Mask2FormerDecoder):
        raise TypeError("a Mask2Former decoder is needed")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        maps = towers(torch.randint(0, 256, (1, 3, side, side), generator=generator).float())
        decoded = decoder.pixel_decoder(decoder.pyramid(*maps[0]))
    points = {}
    for number in numbers:
        params = project.scale.model.model_copy(update={"queries": number})
        widths = tower_widths(sam=towers.sam, clip=towers.clip)
        own: Any = build_possam(params, **widths, seed=0).eval().requires_grad_(False)
        own.decoder = AfterPixelDecoder(own.decoder, decoded)
        whole = Segmenter(sam=towers.sam, clip=towers.clip, possam=own, precision="fp32")
        predict = partial(whole.predict_from_features, *maps, image_size=(side, side))
        task = PostProcessing(
            predict(),
            segmenter=whole,
            inference=project.scale.inference,
            classes=ADE20K_CLASSES,
            generator=generator,
        )
        points[number] = Case(
            name=f"scaling/queries_{number}",
            ours=partial(_in_turn, predict, task.results),
            unit="image",
        )
    return Curve(
        name="scaling/queries",
        quantity="queries",
        points=points,
        note=f"mask decoder, heads, pooling and post-processing at {side} x {side} with "
        f"{ADE20K_CLASSES} classes, without towers and pixel decoder, which do not depend on it",
    )


def _in_turn(first: Callable[[], Any], second: Callable[[Any], Any]) -> Any:
    return second(first())


def scoring(folder: Path, project: "Project", images: Sequence[int]) -> Curve:
    """PQ and mIoU of predictions on disk, read image by image, against the number of images."""
    from benchmarks.score_stream import SIZE, write_predictions, write_stream
    from possam.evaluation.score import measure_predictions

    dataset = write_stream(folder, images=max(images), classes=ADE20K_CLASSES, seed=4)
    points = {}
    for number in images:
        part = replace(dataset, images=dataset.images[:number])
        score = partial(
            measure_predictions,
            dataset=part,
            predictions=write_predictions(folder / f"{number}.json", part),
            segmentations=folder / "predicted",
            evaluation=project.scale.evaluation,
        )
        points[number] = Case(
            name=f"scaling/images_{number}", ours=score, items=number, unit="image"
        )
    return Curve(
        name="scaling/images",
        quantity="images",
        points=points,
        target_memory_exponent=0.1,
        note=f"scoring of panoptic PNGs of {SIZE[1]} x {SIZE[0]} with {ADE20K_CLASSES} classes: "
        "reading, PQ, mIoU and their bootstrap intervals; only the counts of every class and the "
        "weights of the bootstrap are kept in memory",
    )
