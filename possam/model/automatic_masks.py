"""SAM's own automatic masks ("everything"): a grid of points as prompts, no classes.

Shapes: M masks, H W of the image.
"""

import numpy as np
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam


def automatic_masks(
    sam: Sam,
    image: NDArray[np.uint8],
    *,
    points_per_side: int,
    iou_threshold: float,
    stability_threshold: float,
    nms_threshold: float,
) -> NDArray[np.bool_]:
    """Masks of everything in ``image`` (Kirillov et al. 2023, section 5.3 and appendix B).

    Args:
        sam: any size; the image is scaled to the size that it was trained on.
        image: RGB (H,W,3) uint8.
        points_per_side: the grid has the square of it.
        iou_threshold: lowest predicted IoU; stability_threshold: lowest IoU of a mask's versions
            with a stricter and a laxer cut; nms_threshold: highest IoU of two masks' boxes.

    Returns:
        (M, H, W) bool, may overlap, the largest first.
    """
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=points_per_side,
        pred_iou_thresh=iou_threshold,
        stability_score_thresh=stability_threshold,
        box_nms_thresh=nms_threshold,
    )
    found = [entry["segmentation"] for entry in generator.generate(image)]
    masks = np.stack(found) if found else np.zeros((0, *image.shape[:2]), dtype=np.bool_)
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    return np.asarray(masks[order])
