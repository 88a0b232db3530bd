"""The panoptic result of one image: what a user gets, and what speed is measured on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import Geometry, SegmentPrediction, classify, panoptic_inference
from possam.model.options import InferenceOptions
from possam.model.resolution import resize_for_test
from possam.model.segmenter import Segmenter


def segment_image(
    pixels: NDArray[np.uint8],
    *,
    segmenter: Segmenter,
    text: TextEmbeddings,
    things: Sequence[bool],
    seen: Sequence[bool],
    inference: InferenceOptions,
) -> tuple[NDArray[np.int32], list[SegmentPrediction]]:
    """The panoptic result of one image.

    Args:
        pixels: RGB (H,W,3) uint8, any size.
        segmenter: the model, on any device.
        text: embeddings of the K classes; things, seen: K flags.

    Returns:
        Ids (H,W), 0 = no segment, and the segments.
    """
    device = next(segmenter.parameters()).device
    clip: Any = segmenter.clip
    with torch.inference_mode():
        test = resize_for_test(torch.from_numpy(pixels).permute(2, 0, 1), inference.resolution)
        raw = segmenter(test.pixels[None].to(device))
        scores = classify(
            raw,
            text.to(device),
            possam=segmenter.possam,
            clip_logit_scale=clip.logit_scale,
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
