"""Whole inference: one image to panoptic, instance and semantic results, the paper's sizes."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case

if TYPE_CHECKING:
    from possam.model.options import Compilation, Precision
    from possam.model.segmenter import Segmenter
    from possam.params.project import Project

SIDE = 1024
CLASSES = (150, 847)
"""ADE20K and ADE20K-Full."""
PUBLISHED = "table8_efficiency.csv"
_MATRIX = {"cpu": 4096, "cuda": 8192}
"""Sides of the matrices whose products measure the device's ceiling."""


def cases() -> Iterator[Case]:
    """PosSAM with random weights: B, L and H on the CPU in fp32, B compiled, and post-processing;
    if there is a GPU, all three there in bf16, and B compiled.
    """
    import torch

    from possam.params.project import Project

    project = Project("paper")
    yield from on_device(project, "b", device="cpu", precision="fp32", target=(1.8, 0.6))
    for size in ("l", "h"):
        yield from on_device(project, size, device="cpu", precision="fp32")
    yield from compiled_cases(project, device="cpu", precision="fp32", kinds=("inductor",))
    yield from post_processing_cases(project)
    if torch.cuda.is_available():
        published = published_rates(project)
        for size in project.scale.towers.sam:
            yield from on_device(
                project, size, device="cuda", precision="bf16", published=published[size]
            )
        yield from compiled_cases(
            project, device="cuda", precision="bf16", kinds=("inductor", "cuda_graphs")
        )


def published_rates(project: "Project") -> dict[str, tuple[float, str]]:
    """Images per second of each size of SAM in the paper, and where they are printed."""
    from possam.params.published import read_columns

    found = read_columns(project.folder / "published" / PUBLISHED, ("fps",))
    where = "the paper's Table 0.B.1, which names no device"
    sizes = project.scale.towers.sam
    return {size: (found[f"PosSAM ({size.upper()})"]["fps"], where) for size in sizes}


def on_device(
    project: "Project",
    size: str,
    *,
    device: str,
    precision: "Precision",
    side: int = SIDE,
    target: tuple[float, float] | tuple[None, None] = (None, None),
    published: tuple[float, str] | None = None,
) -> Iterator[Case]:
    """One image, towers included, beside the naive assembly on the same device.

    Args:
        size: of the SAM.
        device: ``cpu`` or ``cuda``; ``precision``: of the towers on both sides.
        side: of the image, in pixels.
        target: for the ratio and for the share of memory.
        published: images per second elsewhere, and where.
    """
    import torch

    from benchmarks.ceiling import count_flops, matmul_ceiling
    from benchmarks.naive import NaivePosSAM
    from benchmarks.post_processing import DIFFERENCE, difference

    segmenter, image = _network(project, size, device=device, precision=precision, side=side)
    naive: Any = NaivePosSAM(segmenter, project.scale.model, seed=1)
    naive = naive.eval().requires_grad_(False).to(device)
    parts = (
        f"segment-anything {metadata.version('segment-anything')}, open_clip "
        f"{metadata.version('open_clip_torch')}, transformers {metadata.version('transformers')}, "
        "FC-CLIP's post-processing"
    )
    # Those of the reference: the counter does not see some of our operators.
    with torch.no_grad():  # in inference mode the counter misses products under autocast
        flops = count_flops(partial(naive, image))
    with torch.inference_mode():
        task = _results(project, segmenter, segmenter(image), classes=CLASSES[0])
        yield Case(
            name=f"inference/possam_{size}_{CLASSES[0]}_classes{_suffix(device, precision)}",
            reference=parts,
            ours=partial(_one_image, segmenter, image, task.results),
            theirs=partial(_one_image, naive, image, task.naive_results),
            error=(difference, DIFFERENCE),
            unit="image",
            target=target[0],
            target_memory=target[1],
            device=device,
            flops=flops,
            ceiling=matmul_ceiling(
                device,
                torch.bfloat16 if precision == "bf16" else torch.float32,
                side=_MATRIX[device],
            ),
            published=published,
            note=f"towers in {precision}, the rest in fp32",
        )


def compiled_cases(
    project: "Project",
    *,
    device: str,
    precision: "Precision",
    kinds: "tuple[Compilation, ...]",
    side: int = SIDE,
) -> Iterator[Case]:
    """PosSAM B compiled, beside PosSAM B without compilation."""
    import torch

    from benchmarks.post_processing import DIFFERENCE, difference
    from possam.model.ops.compilation import compiled

    segmenter, image = _network(project, "b", device=device, precision=precision, side=side)
    with torch.inference_mode():
        task = _results(project, segmenter, segmenter(image), classes=CLASSES[0])
        for kind in kinds:
            fast = compiled(segmenter, kind)
            yield Case(
                name=f"inference/possam_b_{kind}{_suffix(device, precision)}",
                reference="PosSAM B as it is",
                ours=partial(_one_image, fast, image, task.results),
                theirs=partial(_one_image, segmenter, image, task.results),
                error=(difference, DIFFERENCE),
                unit="image",
                device=device,
                note=f"evaluation.compile: {kind}; its first call compiles the network",
            )


def post_processing_cases(project: "Project") -> Iterator[Case]:
    """From raw predictions to results, with vocabularies of two sizes, on the CPU."""
    import torch

    from benchmarks.post_processing import DIFFERENCE, difference

    segmenter, image = _network(project, "b", device="cpu", precision="fp32", side=SIDE)
    with torch.inference_mode():
        raw = segmenter(image)
        for classes in CLASSES:
            task = _results(project, segmenter, raw, classes=classes)
            large = classes == CLASSES[-1]
            yield Case(
                name=f"inference/post_processing_{classes}_classes",
                reference="FC-CLIP's post-processing: all masks at the image's size",
                ours=task.ours,
                theirs=task.naive,
                error=(difference, DIFFERENCE),
                unit="image",
                target=3.0 if large else None,
                target_memory=0.25 if large else None,
                note="from raw predictions on, towers and decoders left out",
            )


def _network(
    project: "Project", size: str, *, device: str, precision: "Precision", side: int
) -> tuple["Segmenter", Any]:
    """PosSAM with random weights, and a random image for it."""
    import torch

    from possam.pictures.load import random_segmenter

    segmenter = random_segmenter(project, size, precision=precision)
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (1, 3, side, side), generator=generator).float()
    return segmenter.eval().requires_grad_(False).to(device), image.to(device)


def _results(project: "Project", segmenter: "Segmenter", raw: Any, *, classes: int) -> Any:
    import torch

    from benchmarks.post_processing import PostProcessing

    return PostProcessing(
        raw,
        segmenter=segmenter,
        inference=project.scale.inference,
        classes=classes,
        generator=torch.Generator().manual_seed(3),
    )


def _one_image(network: Callable[[Any], Any], image: Any, results: Callable[[Any], Any]) -> Any:
    return results(network(image))


def _suffix(device: str, precision: str) -> str:
    """Ending of a case's name; empty for a CPU in fp32."""
    return "" if (device, precision) == ("cpu", "fp32") else f"_{device}_{precision}"
