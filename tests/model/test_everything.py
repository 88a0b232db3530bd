"""SAM's automatic masks on the small SAM: segment_anything's own result, the largest first."""

from pathlib import Path

import numpy as np
import pytest
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.sam import load_sam
from possam.model.options import AutomaticMaskOptions
from possam.synthetic.scenes import Scene, render_scene, scene_rng

TOWERS = Path(__file__).resolve().parents[2] / "data/towers"
LAX = AutomaticMaskOptions(
    points_per_side=6, iou_threshold=0.4, stability_threshold=0.6, nms_threshold=0.7
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return load_sam(TOWERS / "synthetic_sam_b.pth", architecture="synthetic_b")


@pytest.fixture(scope="module")
def scene() -> Scene:
    return render_scene(scene_rng(seed=5, domain="web", split="val", index=2), "web")


@pytest.fixture(scope="module")
def image(scene: Scene) -> np.ndarray:
    """The middle of a scene of the look that the SAMs know, 96 x 128."""
    return np.ascontiguousarray(scene.image[16:112])


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


def test_things_and_stuff_are_found(sam: Sam, image: np.ndarray, scene: Scene) -> None:
    masks = automatic_masks(sam, image, LAX).masks
    found = set()
    for segment in scene.segments:
        truth = scene.ids[16:112] == segment.id
        iou = [(m & truth).sum() / (m | truth).sum() for m in masks]
        if max(iou) > 0.6:
            found.add(segment.is_thing)
    assert found == {False, True}


def test_no_mask_is_good_enough(sam: Sam, image: np.ndarray) -> None:
    changes = {"points_per_side": 2, "stability_threshold": 1.0, "iou_threshold": 1.0}
    strict = LAX.model_copy(update=changes)
    masks, iou = automatic_masks(sam, image, strict)
    assert masks.shape == (0, 96, 128) and iou.shape == (0,)
