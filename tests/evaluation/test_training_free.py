"""SAM + CLIP without training: SAM's masks as they are, each named by CLIP's features inside it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from possam.evaluation.segment import segment_image
from possam.evaluation.training_free import TrainingFreeSegmenter
from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.sam import load_sam
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import MaskScores, classify
from possam.model.options import AutomaticMaskOptions
from possam.model.segmenter import RawPrediction
from possam.synthetic.scenes import render_scene, scene_rng
from tests.support.model_fakes import FakeClip, inference_options, random_text

GREY = (124, 116, 104)

TOWERS = Path(__file__).resolve().parents[2] / "data/towers"
LAX = AutomaticMaskOptions(
    points_per_side=6, iou_threshold=0.4, stability_threshold=0.6, nms_threshold=0.7
)


@pytest.fixture(scope="module")
def segmenter() -> TrainingFreeSegmenter:
    sam = load_sam(TOWERS / "synthetic_sam_b.pth", architecture="synthetic_b")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = FakeClip().eval()
    return TrainingFreeSegmenter(sam=sam, clip=clip, options=LAX, precision="fp32", padding=GREY)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A part of a scene that the SAMs know, 100 x 120: no multiple of the towers' strides."""
    scene = render_scene(scene_rng(seed=5, domain="web", split="val", index=2), "web")
    return np.ascontiguousarray(scene.image[14:114, 4:124])


def tensor(*images: np.ndarray) -> torch.Tensor:
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() for image in images])


def scores(raw: RawPrediction, segmenter: TrainingFreeSegmenter, ensemble: str) -> MaskScores:
    return classify(
        raw,
        random_text(classes=5),
        possam=segmenter.possam,
        clip_logit_scale=segmenter.clip.logit_scale,
        seen=torch.tensor([True, False, True, False, False]),
        options=inference_options(ensemble=ensemble),
    )


def test_masks_and_ious_are_sams(segmenter: TrainingFreeSegmenter, image: np.ndarray) -> None:
    raw = segmenter(tensor(image))
    masks, iou = automatic_masks(segmenter.sam, image, LAX)
    assert len(masks) >= 2 and raw.mask_logits.shape[:2] == (1, len(masks))
    assert raw.mask_logits.shape[2:] == raw.padded_size
    inside = raw.mask_logits[0].numpy() > 0
    np.testing.assert_array_equal(inside[:, :100, :120], masks)
    assert not inside[:, 100:].any() and not inside[:, :, 120:].any()
    np.testing.assert_array_equal(raw.iou[0].numpy(), iou)


def test_an_embedding_is_clips_of_the_mean_inside_the_mask(
    segmenter: TrainingFreeSegmenter, image: np.ndarray
) -> None:
    raw = segmenter(tensor(image))
    dense = segmenter.features(tensor(image))[1][0]
    mask = (raw.mask_logits[0, 1] > 0).float()
    share = F.avg_pool2d(mask[None, None], mask.shape[0] // dense.shape[1])[0, 0]
    mean = (dense * share).sum((1, 2)) / share.sum()
    expected = F.normalize(segmenter.clip.project(mean), dim=-1)
    torch.testing.assert_close(raw.clip_embeddings[0, 1], expected)


@pytest.mark.parametrize("ensemble", ["mase", "geometric", "ldp"])
def test_every_ensemble_is_clips_own_classification(
    segmenter: TrainingFreeSegmenter, image: np.ndarray, ensemble: str
) -> None:
    raw = segmenter(tensor(image))
    own, clip = (scores(raw, segmenter, name) for name in (ensemble, "clip"))
    torch.testing.assert_close(own.class_probs, clip.class_probs)
    assert (own.void == 0).all()


def test_a_batch_is_its_images(segmenter: TrainingFreeSegmenter, image: np.ndarray) -> None:
    empty = np.full_like(image, 128)
    both = segmenter(tensor(image, empty))
    for row, single in enumerate(map(segmenter, (tensor(image), tensor(empty)))):
        count = single.mask_logits.shape[1]
        torch.testing.assert_close(both.mask_logits[row, :count], single.mask_logits[0])
        torch.testing.assert_close(both.iou[row, :count], single.iou[0])
        assert (both.mask_logits[row, count:] < 0).all() and (both.iou[row, count:] == 0).all()


def test_segments_are_named(segmenter: TrainingFreeSegmenter, image: np.ndarray) -> None:
    """With the embedding of the best mask as a name, that mask gets it: the cosine is one."""
    raw = segmenter(tensor(image))
    masks = raw.mask_logits[0, :, :100, :120].numpy() > 0
    best = int(raw.iou[0].argmax())
    other = F.normalize(-raw.clip_embeddings[0, best], dim=-1)
    text = TextEmbeddings(
        torch.stack([other, raw.clip_embeddings[0, best]]), torch.tensor([0, 1]), 2
    )
    ids, segments = segment_image(
        image,
        segmenter=segmenter,
        text=text,
        things=[True, True],
        seen=[False, False],
        inference=inference_options(overlap_threshold=0.0),
    )
    found = {segment.id: segment.category for segment in segments}
    assert found[int(np.bincount(ids[masks[best]]).argmax())] == 1


def test_an_image_without_a_mask(segmenter: TrainingFreeSegmenter, image: np.ndarray) -> None:
    strict = LAX.model_copy(update={"points_per_side": 2, "iou_threshold": 1.0})
    bare = TrainingFreeSegmenter(
        sam=segmenter.sam, clip=segmenter.clip, options=strict, precision="fp32", padding=GREY
    )
    raw = bare(tensor(image))
    assert raw.mask_logits.shape[1] == 1 and (raw.mask_logits < 0).all() and raw.iou.sum() == 0
