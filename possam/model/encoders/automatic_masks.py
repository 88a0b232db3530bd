"""SAM's own automatic masks ("everything"): a grid of points as prompts, no classes.

Shapes: M masks, H W of the image.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from possam.model.options import AutomaticMaskOptions


class AutomaticMasks(NamedTuple):
    """Masks (M, H, W) bool, which may overlap, the largest first; SAM's own IoUs of them, (M,)."""

    masks: NDArray[np.bool_]
    iou: NDArray[np.float32]


def automatic_masks(
    sam: Sam, image: NDArray[np.uint8], options: AutomaticMaskOptions
) -> AutomaticMasks:
    """Masks of everything in ``image`` (Kirillov et al. 2023, section 5.3 and appendix B).

    Args:
        sam: any size; the image is scaled to the size that this SAM was trained on.
        image: RGB (H, W, 3) uint8.
        options: the grid of points and the thresholds.
    """
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=options.points_per_side,
        pred_iou_thresh=options.iou_threshold,
        stability_score_thresh=options.stability_threshold,
        box_nms_thresh=options.nms_threshold,
    )
    found = generator.generate(image)
    masks = np.zeros((len(found), *image.shape[:2]), dtype=np.bool_)
    for row, entry in zip(masks, found, strict=True):
        row[:] = entry["segmentation"]
    iou = np.array([entry["predicted_iou"] for entry in found], dtype=np.float32)
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    # SAM's head is trained by regression: it may exceed one.
    return AutomaticMasks(masks[order], iou[order].clip(0.0, 1.0))
