"""Training: the criterion, the whole step of the trainable part, and the reading of images."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case

if TYPE_CHECKING:
    from possam.model.encoders.text import TextEmbeddings
    from possam.model.options import ModelOptions
    from possam.model.segmenter import Segmenter
    from possam.params.scale import RunParams
    from possam.training.options import LossOptions, TrainingOptions
    from possam.training.targets import Batch, Target

LOSS_DIFFERENCE = "relative difference of the loss, whose random points differ"
PHOTOGRAPHS = 24


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Sizes of the frozen towers' maps, and of the vocabulary.

    Attributes:
        side: of the image, in pixels.
        sam: channels and stride of SAM's map; clip: the same of CLIP's dense map.
        embed_dim: of CLIP's text; classes: of the vocabulary.
    """

    side: int
    sam: tuple[int, int]
    clip: tuple[int, int]
    embed_dim: int
    classes: int


PAPER = Inputs(side=512, sam=(256, 16), clip=(1536, 32), embed_dim=768, classes=133)
"""SAM and CLIP ConvNeXt-L at half the paper's crop: a step takes seconds on a CPU."""
MINI = Inputs(side=128, sam=(64, 8), clip=(128, 8), embed_dim=128, classes=133)


def cases() -> Iterator[Case]:
    """Half the paper's crop, two images, fp32; then mini's step; then the loader; and if there is a
    GPU, whole steps of one GPU at the paper's size.
    """
    import torch

    from possam.params.project import Project

    run = Project("paper").run("possam_b_coco")
    changed = {"batch_size": 2, "micro_batch": 2, "precision": "fp32"}
    training = run.training.model_copy(update=changed)
    yield from step_cases("512", PAPER, model=run.model, training=training, loss=run.loss)
    run = Project("mini").run("possam_b_coco")
    yield from step_cases("mini", MINI, model=run.model, training=run.training, loss=run.loss)
    yield from loader_case(images=PHOTOGRAPHS, size=(480, 640), side=1024)
    if torch.cuda.is_available():
        from possam.pictures.load import random_segmenter

        project = Project("paper")
        for size in project.scale.towers.sam:
            segmenter = random_segmenter(project, size)
            run = project.run(f"possam_{size}_coco")
            yield from live_cases(size, segmenter, run, device="cuda", side=1024, images=2)


def step_cases(
    name: str,
    inputs: Inputs,
    *,
    model: "ModelOptions",
    training: "TrainingOptions",
    loss: "LossOptions",
) -> Iterator[Case]:
    """The criterion by itself, and the whole step against both kinds of losses."""

    from benchmarks.naive_training import Masks, NaiveTrainer
    from possam.model.possam import build_possam
    from possam.training.distributed import single_process
    from possam.training.trainer import Trainer

    yield criterion_case(name, inputs, model=model, images=training.micro_batch, loss=loss)
    batch = draw_batch(inputs, images=training.batch_size)
    text = _random_text(inputs.classes, inputs.embed_dim, seed=5)
    kinds: tuple[tuple[str, Masks, str], ...] = (
        ("step", "points", "Mask2Former's decoders and criterion"),
        (
            "step_whole_masks",
            "pixels",
            "Mask2Former's decoders, losses on whole masks",
        ),
    )
    for kind, masks, parts in kinds:
        network = build_possam(
            model,
            backbone_channels=(inputs.sam[0],),
            clip_channels=inputs.clip[0],
            embed_dim=inputs.embed_dim,
            seed=0,
        )
        shared: dict[str, Any] = {"text": text, "training": training, "loss": loss, "seed": 1}
        naive = NaiveTrainer(network, model=model, masks=masks, **shared)
        trainer = Trainer(model=network, process=single_process("cpu"), **shared)
        yield Case(
            name=f"training/{kind}_{name}",
            reference=f"transformers {metadata.version('transformers')}: {parts}",
            ours=partial(_loss_of_step, trainer, batch),
            theirs=partial(naive.step, batch),
            error=(_relative, LOSS_DIFFERENCE),
            items=training.batch_size,
            unit="image",
            note=f"{training.precision}, images of {inputs.side} x {inputs.side}, the towers' "
            "features given, AdamW included",
        )


def live_cases(
    name: str, segmenter: "Segmenter", run: "RunParams", *, device: str, side: int, images: int
) -> Iterator[Case]:
    """Whole steps of one process, the frozen towers included, beside the naive assembly.

    Args:
        segmenter: a network with random weights, in the towers' precision; it is modified.
        run: its parameters.
        device: ``cpu`` or ``cuda``.
        side: of the images, in pixels; images: per step.
    """
    import copy

    import torch

    from benchmarks.naive import NaiveTowers
    from benchmarks.naive_training import NaiveTrainer
    from possam.training.distributed import single_process
    from possam.training.memory import hold_in_bfloat16
    from possam.training.targets import Batch
    from possam.training.trainer import Trainer

    training = run.training.model_copy(update={"batch_size": images, "micro_batch": images})
    shared: dict[str, Any] = {
        "text": _random_text(PAPER.classes, segmenter.clip.embed_dim, seed=5),
        "training": training,
        "loss": run.loss,
        "seed": 1,
    }
    place = torch.device(device)
    naive = NaiveTrainer(segmenter.possam, model=run.model, masks="points", device=place, **shared)
    their_towers = NaiveTowers(copy.deepcopy(segmenter)).to(place)
    towers: Any = segmenter.features.to(place)
    if towers.dtype == torch.bfloat16:
        hold_in_bfloat16(towers.sam, towers.clip.model.visual)  # as in training
    trainer = Trainer(model=segmenter.possam, process=single_process(place), **shared)
    targets = draw_targets(side, classes=PAPER.classes, images=images)
    targets = [target.to(place) for target in targets]
    shape, generator = (images, 3, side, side), torch.Generator().manual_seed(6)
    pixels = torch.randint(0, 256, shape, generator=generator).float().to(place)

    def batch(sam: Any, dense: Any) -> Batch:
        return Batch(
            backbone=(sam.float(),),
            clip_features=dense.float(),
            targets=targets,
            indices=list(range(images)),
        )

    def ours() -> float:
        (sam,), dense = towers(pixels)
        return _loss_of_step(trainer, batch(sam, dense))

    yield Case(
        name=f"training/whole_step_{name}_{device}",
        reference=f"segment-anything {metadata.version('segment-anything')}, open_clip "
        f"{metadata.version('open_clip_torch')}, transformers {metadata.version('transformers')}: "
        "Mask2Former's decoders and criterion",
        ours=ours,
        theirs=lambda: naive.step(batch(*their_towers(pixels))),
        error=(_relative, LOSS_DIFFERENCE),
        unit="step",
        device=device,
        note=f"{images} images of {side} x {side}, frozen towers included; decoders in "
        f"{training.precision}, towers in {'bf16' if towers.dtype == torch.bfloat16 else 'fp32'}",
    )


def _random_text(classes: int, embed_dim: int, *, seed: int) -> "TextEmbeddings":
    import torch

    from possam.model.encoders.text import TextEmbeddings

    generator = torch.Generator().manual_seed(seed)
    names = torch.randn(classes, embed_dim, generator=generator)
    names = torch.nn.functional.normalize(names, dim=-1)
    return TextEmbeddings(names, torch.arange(classes), classes)


def _loss_of_step(trainer: Any, batch: "Batch") -> float:
    _, logged = trainer.step(0, [batch])
    return float(logged[0])


def _relative(mine: float, yours: float) -> float:
    return abs(mine - yours) / abs(yours)


def criterion_case(
    name: str, inputs: Inputs, *, model: "ModelOptions", images: int, loss: "LossOptions"
) -> Case:
    """Matching and losses of all layers, and their gradients, from given predictions."""
    import torch

    from benchmarks.naive_training import NaiveCriterion
    from possam.training.losses import Criterion

    generator = torch.Generator().manual_seed(3)
    targets = draw_targets(inputs.side, classes=inputs.classes, images=images)
    size = 4 * inputs.side // inputs.sam[1]  # mask features are four times SAM's map
    layers = model.decoder_layers + 1
    masks = [
        _smooth(images * model.queries, size, generator).view(images, model.queries, size, size)
        for _ in range(layers)
    ]
    shape = (layers, images, model.queries, inputs.classes + 1)
    scores = torch.randn(shape, generator=generator)

    def run(criterion: Any) -> float:
        leaves = [layer.detach().requires_grad_() for layer in (*masks, scores)]
        total = criterion(leaves[:-1], leaves[-1])
        total.backward()
        return float(total.detach())

    def ours(mask_logits: Any, class_logits: Any) -> Any:
        return Criterion(loss)(
            mask_logits=mask_logits,
            class_logits=class_logits,
            iou_logits=None,
            targets=targets,
            generator=torch.Generator().manual_seed(4),
        ).total

    naive = NaiveCriterion(loss, classes=inputs.classes, masks="points")
    return Case(
        name=f"training/criterion_{name}",
        reference=f"transformers {metadata.version('transformers')}: Mask2FormerLoss",
        ours=lambda: run(ours),
        theirs=lambda: run(lambda masks, scores: naive(masks, list(scores), None, targets)),
        error=(_relative, LOSS_DIFFERENCE),
        items=images,
        unit="image",
        note=f"{layers} layers of {model.queries} masks of {size} x {size}, forward and backward",
    )


def _smooth(count: int, size: int, generator: Any) -> Any:
    """(count, size, size) smooth noise: logits of masks with large areas."""
    import torch

    coarse = 3 * torch.randn(count, 1, max(2, size // 16), max(2, size // 16), generator=generator)
    wide = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return wide[:, 0]


def draw_targets(side: int, *, classes: int, images: int) -> "list[Target]":
    """Segments of drawn scenes: stuff and things."""
    import numpy as np

    from benchmarks.conversion import draw_scene
    from possam.training.targets import target_from_ids

    targets = []
    for seed in range(images):
        scene = draw_scene(seed, size=(side, side))
        ids = np.where(scene.numbers > 0, 256 + scene.numbers.astype(np.int32), scene.labels)
        keys = np.unique(ids[ids > 0]).tolist()
        targets.append(target_from_ids(ids, [(key, 7 * key % classes) for key in keys]))
    return targets


def draw_batch(inputs: Inputs, *, images: int) -> "Batch":
    """Random features of both towers, and the segments of drawn scenes."""
    import torch

    from possam.training.targets import Batch

    generator = torch.Generator().manual_seed(2)
    maps = [
        torch.randn(
            images, channels, inputs.side // stride, inputs.side // stride, generator=generator
        )
        for channels, stride in (inputs.sam, inputs.clip)
    ]
    return Batch(
        backbone=(maps[0],),
        clip_features=maps[1],
        targets=draw_targets(inputs.side, classes=inputs.classes, images=images),
        indices=list(range(images)),
    )


def loader_case(*, images: int, size: tuple[int, int], side: int) -> Iterator[Case]:
    """Samples of a drawn data set in COCO's layout, in this process, with large-scale jitter."""
    from benchmarks.conversion import convert_coco, write_coco
    from benchmarks.naive_training import read_sample
    from possam.datasets.format import ConvertedDataset
    from possam.datasets.loader import SegmentationDataset
    from possam.datasets.options import AugmentationOptions

    jitter = AugmentationOptions(policy="lsj", size=side, min_scale=0.1, max_scale=2.0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        arguments = write_coco(root / "upstream", images=images, size=size)
        convert_coco(**arguments, out=root / "converted", workers=1)
        dataset = ConvertedDataset.open(root / "converted")
        samples = SegmentationDataset(dataset, augmentation=jitter, padding=(0, 0, 0), seed=0)

        def compared(mine: Any, yours: Any) -> float:
            pairs = zip(mine, yours, strict=True)
            return max(float((a.image.int() - b.image.int()).abs().max()) for a, b in pairs)

        yield Case(
            name="training/loader",
            reference=f"torchvision {metadata.version('torchvision')}: transforms v2 of the image "
            "and of one mask per segment",
            ours=lambda: [samples.sample(index) for index in range(images)],
            theirs=lambda: [read_sample(samples, index) for index in range(images)],
            error=(compared, "largest difference of image values, of 255"),
            items=images,
            unit="image",
            note=f"{size[1]} x {size[0]} pixels, scaled by 0.1 to 2 of {side} and cut to {side} x "
            f"{side}, mirrored; one process",
        )
