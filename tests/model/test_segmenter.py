"""Towers and trainable part together: padding, precision, independence of the batch."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from possam.model.segmenter import Segmenter, TowerFeatures
from possam.runtime.errors import InputError
from tests.support.model_fakes import SMALL, STAGES, FakeClip, FakeSam, small_possam


def segmenter(**changes: object) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(
        sam=FakeSam(), clip=FakeClip(), possam=small_possam(**changes), precision="fp32"
    )


GREY = (124, 116, 104)


def images(height: int, width: int, *, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, 3, height, width), generator=generator).float()


@pytest.mark.parametrize(("sam", "clip", "multiple"), [(16, 32, 32), (8, 8, 16), (4, 6, 24)])
def test_maps_of_all_scales_cover_the_padded_image(sam: int, clip: int, multiple: int) -> None:
    towers = TowerFeatures(
        sam=FakeSam(stride=sam), clip=FakeClip(stride=clip), precision="fp32", padding=GREY
    )
    assert towers.multiple == multiple
    height, width = towers.padded_size((45, 50))
    (sam_map,), clip_map = towers(images(45, 50))
    assert sam_map.shape[-2:] == (height // sam, width // sam)
    assert clip_map.shape[-2:] == (height // clip, width // clip)
    assert height % (2 * sam) == width % (2 * sam) == 0  # the coarsest scale is whole, too
    assert 45 <= height < 45 + multiple and 50 <= width < 50 + multiple


def test_padding_is_on_the_right_and_below_with_the_mean_colour() -> None:
    seen = []
    sam = FakeSam()
    sam.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    image = images(9, 13)
    TowerFeatures(sam=sam, clip=FakeClip(), precision="fp32", padding=GREY)(image)
    assert seen[0].shape == (1, 3, 16, 16)
    assert torch.equal(seen[0][..., :9, :13], image)
    assert torch.equal(seen[0][0, :, 9, 0], torch.tensor(GREY).float())
    assert torch.equal(seen[0][0, :, 0, 13], torch.tensor(GREY).float())


def test_prediction() -> None:
    model = segmenter()
    raw = model(images(21, 30))
    assert raw.padded_size == (24, 32) and raw.image_size == (21, 30)
    assert raw.mask_logits.shape == (1, SMALL["queries"], 24, 32)
    for embeddings in (raw.ldp_embeddings, raw.clip_embeddings):
        assert embeddings.shape == (1, SMALL["queries"], SMALL["embed_dim"])
        assert_close(embeddings.norm(dim=-1), torch.ones(1, SMALL["queries"]))
    assert raw.iou is not None and ((raw.iou >= 0) & (raw.iou <= 1)).all()
    assert segmenter(iou_head=False)(images(21, 30)).iou is None


def test_clip_embeddings_are_clip_s_own_head_on_its_pooled_features() -> None:
    model = segmenter()
    image = images(16, 24)
    raw = model(image)
    pooled = model.possam(*model.features(image)).clip_pooled
    assert_close(raw.clip_embeddings, F.normalize(model.clip.head(pooled), dim=-1))


def test_batch_of_one_and_of_many() -> None:
    model, batch = segmenter(), images(21, 30, batch=3)
    together = model(batch)
    for index in range(3):
        alone = model(batch[index : index + 1])
        for name in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
            one, many = getattr(alone, name)[0], getattr(together, name)[index]
            assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_reduced_precision_and_cached_features() -> None:
    torch.manual_seed(0)
    model = Segmenter(sam=FakeSam(), clip=FakeClip(), possam=small_possam(), precision="bf16")
    image = images(16, 16)
    (sam,), clip = model.features(image)
    assert sam.dtype == clip.dtype == torch.bfloat16 and not sam.requires_grad
    direct, cached = model(image), model.predict_from_features((sam,), clip, image_size=(16, 16))
    assert torch.equal(direct.mask_logits, cached.mask_logits)
    assert direct.mask_logits.dtype == torch.float32


def test_wrong_shape_is_refused() -> None:
    with pytest.raises(InputError, match=r"\(B, 3, H, W\)"):
        segmenter()(torch.zeros(3, 8, 8))


def clip_alone() -> Segmenter:
    torch.manual_seed(0)
    clip = FakeClip(stride=4)
    return Segmenter(sam=None, clip=clip, possam=small_possam(**STAGES), precision="fp32")


def test_without_sam_the_stages_of_clip_are_the_backbone() -> None:
    model, image = clip_alone(), images(21, 30)
    backbone, dense = model.features(image)
    assert model.features.multiple == 16  # the coarsest of the scales 2, 4, 8, 16 is whole
    assert [tuple(level.shape[-2:]) for level in backbone] == [(16, 16), *[(8, 8)] * 3]
    assert dense is backbone[-1]
    raw = model(image)
    assert raw.padded_size == (32, 32) and raw.iou is None
    assert raw.mask_logits.shape == (1, SMALL["queries"], 16, 16)
    assert [name for name, _ in model.features.named_children()] == ["clip"]


def test_without_sam_a_batch_of_one_and_of_many() -> None:
    model, batch = clip_alone(), images(21, 30, batch=3)
    together = model(batch)
    for index in range(3):
        alone = model(batch[index : index + 1])
        for name in ("mask_logits", "ldp_embeddings", "clip_embeddings"):
            one, many = getattr(alone, name)[0], getattr(together, name)[index]
            assert_close(one, many, rtol=1e-4, atol=1e-4)


def test_a_backbone_of_other_maps_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.backbone: clip .*\[16\] channels"):
        small_possam(**{**STAGES, "backbone_channels": [16]})
    with pytest.raises(InputError, match=r"model\.backbone: sam .*SAM gives one map"):
        small_possam(backbone_channels=STAGES["backbone_channels"])
