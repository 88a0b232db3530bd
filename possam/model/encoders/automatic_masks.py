"""SAM's own automatic masks ("everything"): a grid of points as prompts, no classes.

Shapes: M masks, H W of the image.
"""

import numpy as np
from numpy.typing import NDArray
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from possam.model.options import AutomaticMaskOptions


def automatic_masks(
    sam: Sam, image: NDArray[np.uint8], options: AutomaticMaskOptions
) -> NDArray[np.bool_]:
    """Masks of everything in ``image`` (Kirillov et al. 2023, section 5.3 and appendix B).

    Args:
        sam: any size; the image is scaled to the size that this SAM was trained on.
        image: RGB (H, W, 3) uint8.
        options: the grid of points and the thresholds.

    Returns:
        (M, H, W) bool, may overlap, the largest first.
    """
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=options.points_per_side,
        pred_iou_thresh=options.iou_threshold,
        stability_score_thresh=options.stability_threshold,
        box_nms_thresh=options.nms_threshold,
    )
    found = [entry["segmentation"] for entry in generator.generate(image)]
    masks = np.stack(found) if found else np.zeros((0, *image.shape[:2]), dtype=np.bool_)
    order = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")
    return np.asarray(masks[order])
