"""Segment one image: with names that are embedded already, or with any words."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from possam.datasets.class_names import seen_classes
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import Geometry, SegmentPrediction, classify, panoptic_inference
from possam.model.options import InferenceOptions
from possam.model.resolution import resize_for_test
from possam.model.segmenter import Segmenter

Names = tuple[str, ...]
"""One class: its name and synonyms."""


def segment_words(
    pixels: NDArray[np.uint8],
    vocabulary: Sequence[Names],
    *,
    segmenter: Segmenter,
    embed: Callable[[Sequence[Names]], TextEmbeddings],
    things: Sequence[bool],
    training_vocabulary: Sequence[Sequence[str]],
    inference: InferenceOptions,
) -> tuple[NDArray[np.int32], list[SegmentPrediction]]:
    """The panoptic result of one image for any ``vocabulary`` of K classes.

    Other arguments and the result as of :func:`segment_image`.

    Args:
        embed: turns names into text embeddings of the segmenter's CLIP.
        training_vocabulary: names of the classes trained on; empty: no class counts as seen.
    """
    return segment_image(
        pixels,
        segmenter=segmenter,
        text=embed(vocabulary),
        things=things,
        seen=seen_classes(vocabulary, training_vocabulary),
        inference=inference,
    )


def segment_image(
    pixels: NDArray[np.uint8],
    *,
    segmenter: Segmenter,
    text: TextEmbeddings,
    things: Sequence[bool],
    seen: Sequence[bool],
    inference: InferenceOptions,
) -> tuple[NDArray[np.int32], list[SegmentPrediction]]:
    """The panoptic result of one image: ids (H,W) int32, 0 = no segment, and the segments.

    Args:
        pixels: RGB (H,W,3) uint8, any size.
        text: embeddings of the K classes; things, seen: K flags.
    """
    device = next(segmenter.parameters()).device
    with torch.inference_mode():
        test = resize_for_test(torch.from_numpy(pixels).permute(2, 0, 1), inference.resolution)
        raw = segmenter(test.pixels[None].to(device))
        scores = classify(
            raw,
            text.to(device),
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.tensor(list(seen), device=device),
            options=inference,
        )
        geometry = Geometry(
            padded=raw.padded_size, content=test.content_size, output=test.original_size
        )
        ids, segments = panoptic_inference(
            raw.mask_logits[0],
            scores,
            image=0,
            geometry=geometry,
            is_thing=torch.tensor(list(things), device=device),
            object_threshold=inference.object_threshold,
            overlap_threshold=inference.overlap_threshold,
        )
    return ids.cpu().numpy().astype(np.int32), list(segments)
