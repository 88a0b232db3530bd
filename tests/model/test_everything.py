"""SAM's automatic masks on the small SAM: segment_anything's own result, the largest first."""

from pathlib import Path

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.sam import load_sam
from possam.model.options import AutomaticMaskOptions

TOWERS = Path(__file__).resolve().parents[2] / "data/towers"
LAX = AutomaticMaskOptions(
    points_per_side=6, iou_threshold=0.4, stability_threshold=0.6, nms_threshold=0.7
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(TOWERS / "synthetic_sam_b.pth", architecture="synthetic_b")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A red square and a blue disc on green, 96 x 128."""
    pixels = np.full((96, 128, 3), (40, 160, 60), dtype=np.uint8)
    pixels[20:60, 15:55] = (210, 40, 40)
    rows, columns = np.mgrid[:96, :128]
    pixels[(rows - 55) ** 2 + (columns - 90) ** 2 < 25**2] = (40, 60, 210)
    return pixels


def test_masks_are_segment_anythings(sam: Sam, image: np.ndarray) -> None:
    masks, iou = automatic_masks(sam, image, LAX)
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=6,
        pred_iou_thresh=0.4,
        stability_score_thresh=0.6,
        box_nms_thresh=0.7,
    )
    found = generator.generate(image)
    theirs = sorted((entry["segmentation"] for entry in found), key=np.sum)
    assert masks.shape == (len(theirs), 96, 128) and masks.dtype == bool and len(masks) >= 2
    areas = masks.sum(axis=(1, 2))
    assert (np.diff(areas) <= 0).all()
    assert sorted(m.tobytes() for m in masks) == sorted(m.tobytes() for m in theirs)
    stated = {entry["segmentation"].tobytes(): entry["predicted_iou"] for entry in found}
    expected = [min(stated[mask.tobytes()], 1.0) for mask in masks]
    np.testing.assert_allclose(iou, expected, rtol=1e-6)


def test_the_square_and_the_disc_are_found(sam: Sam, image: np.ndarray) -> None:
    masks = automatic_masks(sam, image, LAX).masks
    for colour in ((210, 40, 40), (40, 60, 210)):
        truth = (image == colour).all(-1)
        iou = [(m & truth).sum() / (m | truth).sum() for m in masks]
        assert max(iou) > 0.5


def test_no_mask_is_good_enough(sam: Sam, image: np.ndarray) -> None:
    changes = {"points_per_side": 2, "stability_threshold": 1.0, "iou_threshold": 1.0}
    strict = LAX.model_copy(update=changes)
    masks, iou = automatic_masks(sam, image, strict)
    assert masks.shape == (0, 96, 128) and iou.shape == (0,)
