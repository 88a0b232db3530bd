"""Segment one image with names that are embedded already (any words: ``evaluation.words``)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import (
    Geometry,
    MaskScores,
    SegmentPrediction,
    classify,
    panoptic_inference,
)
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.model.resolution import resize_for_test
from possam.model.segmenter import RawPrediction, Segmenter


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

    def score(raw: RawPrediction) -> MaskScores:
        return classify(
            raw,
            text.to(device),
            possam=segmenter.possam,
            clip_logit_scale=segmenter.clip.logit_scale,
            seen=torch.tensor(list(seen), device=device),
            options=inference,
        )

    return segment_scored(
        pixels,
        segmenter=segmenter,
        score=score,
        things=things,
        inference=inference,
        resolution=inference.resolution,
    )


@torch.inference_mode()
def segment_scored(
    pixels: NDArray[np.uint8],
    *,
    segmenter: Segmenter,
    score: Callable[[RawPrediction], MaskScores],
    things: Sequence[bool],
    inference: InferenceOptions,
    resolution: ResolutionOptions,
) -> tuple[NDArray[np.int32], list[SegmentPrediction]]:
    """As :func:`segment_image`, at ``resolution``, with masks classified by ``score``."""
    device = next(segmenter.parameters()).device
    image, padding = torch.from_numpy(pixels).permute(2, 0, 1), segmenter.features.padding
    test = resize_for_test(image, resolution, padding=padding)
    raw = segmenter(test.pixels[None].to(device))
    geometry = Geometry(
        padded=raw.padded_size, content=test.content_size, output=test.original_size
    )
    ids, segments = panoptic_inference(
        raw.mask_logits[0],
        score(raw),
        image=0,
        geometry=geometry,
        is_thing=torch.tensor(list(things), device=device),
        mask_filter=inference.mask_filter,
        object_threshold=inference.object_threshold,
        overlap_threshold=inference.overlap_threshold,
    )
    return ids.cpu().numpy().astype(np.int32), list(segments)
