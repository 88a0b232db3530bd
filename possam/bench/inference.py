"""Whole inference: one image to panoptic, instance and semantic results, the paper's sizes."""

from collections.abc import Iterator
from functools import partial
from importlib import metadata
from typing import Any

from possam.bench.harness import Case, relative_error

SIDE = 1024
DIFFERENCE = "share of pixels with another class, or relative error of the instances' scores"
KEPT = 20
"""Masks above the threshold of objectness, about as many as there are segments in an image."""


def cases() -> Iterator[Case]:
    """PosSAM B, random weights, fp32; the towers included, then post-processing by itself."""
    import torch

    from possam.bench.naive import NaivePosSAM, classify_with, naive_results, whole
    from possam.model.inference import instance_inference, panoptic_inference, semantic_inference
    from possam.model.text import TextEmbeddings
    from possam.params import InferenceParams, Project
    from possam.stages.predict import random_segmenter

    project = Project("paper")
    segmenter = random_segmenter(project, "b", precision="fp32").eval().requires_grad_(False)
    model = project.run("possam_b_coco").model
    naive = NaivePosSAM(segmenter, model, seed=1).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (1, 3, SIDE, SIDE), generator=generator).float()
    parts = (
        f"segment-anything {metadata.version('segment-anything')}, open_clip "
        f"{metadata.version('open_clip_torch')}, transformers {metadata.version('transformers')}, "
        "FC-CLIP's post-processing"
    )

    def vocabulary(classes: int) -> tuple[Any, Any]:
        names = torch.randn(classes, segmenter.clip.embed_dim, generator=generator)
        names = torch.nn.functional.normalize(names, dim=-1)
        text = TextEmbeddings(names, torch.arange(classes), classes)
        return text, torch.arange(classes) % 2 == 0

    def settings(raw: Any, text: Any, seen: Any) -> tuple[Any, InferenceParams]:
        """Which classes are things, and the scale's settings, but for a threshold that keeps a
        usual number of these random masks.

        Every other class is a thing, the one that scores best among them. The threshold lies
        halfway between two masks: rounding must not decide which are kept.
        """
        inference = project.scale.inference
        scores = classify_with(segmenter, raw, text, seen, inference)
        order = scores.class_scores[0].sum(0).argsort(descending=True)
        is_thing = torch.zeros(len(order), dtype=torch.bool)
        is_thing[order[::2]] = True
        objectness = scores.objectness[0]
        last, next_one = objectness.sort(descending=True).values[KEPT - 1 : KEPT + 1].tolist()
        threshold = (last + next_one) / 2
        return is_thing, inference.model_copy(update={"object_threshold": threshold})

    def ours(raw: Any, text: Any, seen: Any, is_thing: Any, inference: Any) -> Any:
        scores = classify_with(segmenter, raw, text, seen, inference)
        shared: dict[str, Any] = {"image": 0, "geometry": whole(raw.image_size)}
        ids, segments = panoptic_inference(
            raw.mask_logits[0],
            scores,
            is_thing=is_thing,
            object_threshold=inference.object_threshold,
            overlap_threshold=inference.overlap_threshold,
            **shared,
        )
        _, _, found = instance_inference(
            raw.mask_logits[0], scores, is_thing=is_thing, top_k=inference.instance_top_k, **shared
        )
        labels = semantic_inference(raw.mask_logits[0], scores, **shared)
        classes = torch.tensor([-1, *(segment.category for segment in segments)])
        return classes[ids], labels, found

    def theirs(raw: Any, text: Any, seen: Any, is_thing: Any, inference: Any) -> Any:
        scores = classify_with(segmenter, raw, text, seen, inference)
        return naive_results(raw, scores, is_thing=is_thing, inference=inference)

    def differing(mine: Any, yours: Any) -> float:
        labels = zip(mine[:2], yours[:2], strict=True)
        shares = [float((a != b).float().mean()) for a, b in labels]
        return max(*shares, relative_error(mine[2], yours[2]))

    with torch.inference_mode():
        text, seen = vocabulary(150)
        raw = segmenter(image)
        is_thing, chosen = settings(raw, text, seen)
        yield Case(
            name="inference/possam_b_150_classes",
            reference=parts,
            ours=lambda: ours(segmenter(image), text, seen, is_thing, chosen),
            theirs=lambda: theirs(naive(image), text, seen, is_thing, chosen),
            error=(differing, DIFFERENCE),
            unit="image",
            target=1.8,
            target_memory=0.6,
        )
        for classes in (150, 847):
            text, seen = vocabulary(classes)
            is_thing, chosen = settings(raw, text, seen)
            given = (raw, text, seen, is_thing, chosen)
            yield Case(
                name=f"inference/post_processing_{classes}_classes",
                reference="FC-CLIP's post-processing: all masks at the image's size",
                ours=partial(ours, *given),
                theirs=partial(theirs, *given),
                error=(differing, DIFFERENCE),
                unit="image",
                target=3.0 if classes == 847 else None,
                target_memory=0.25 if classes == 847 else None,
                note="from raw predictions on, towers and decoders left out",
            )
