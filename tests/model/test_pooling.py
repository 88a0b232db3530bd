"""Mask pooling against hand-computed means, and what every pooling must respect."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from possam.model.pooling import hard_masks, mask_pool
from possam.model.registry import POOLINGS, load_part
from tests.support.model_fakes import model_options

VARIANTS = [(name, "mask") for name in POOLINGS] + [("ldp", "image")]


def pooling(name: Any, interaction: Any) -> Any:
    torch.manual_seed(0)
    changes = {"region_features": "mask_features_and_queries"} if name == "fcclip" else {}
    options = model_options(pooling=name, pooling_interaction=interaction, **changes)
    module = load_part(POOLINGS, name)(options, region_channels=6, clip_channels=10, embed_dim=12)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 5, 6, generator=generator), torch.randn(2, 5, 10, generator=generator)


def test_mask_pool_is_the_mean_inside_by_hand() -> None:
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    logits = -torch.ones(1, 4, 4, 4)
    logits[0, 0, :2, :2] = 5.0  # exactly the first cell
    logits[0, 1, :, 1:3] = 0.1  # half of every cell
    logits[0, 2, 0, :] = 1.0  # a quarter... of the two upper cells
    logits[0, 2, 3, 3] = 1.0  # and one pixel of the last
    # the fourth is empty
    pooled = mask_pool(features, hard_masks(logits))
    assert_close(pooled[0, :, 0], torch.tensor([1.0, 2.5, (2 * 1 + 2 * 2 + 1 * 4) / 5, 0.0]))


@pytest.mark.parametrize("size", [(3, 5), (6, 10), (12, 20), (7, 9)])
def test_mask_pool_of_a_constant_is_that_constant(size: tuple[int, int]) -> None:
    features = torch.full((1, 2, *size), 3.0)
    logits = torch.randn(1, 4, 12, 20, generator=torch.Generator().manual_seed(0))
    assert_close(mask_pool(features, hard_masks(logits)), torch.full((1, 4, 2), 3.0))


def test_mask_pool_passes_gradients_to_features_only() -> None:
    features = torch.randn(1, 2, 4, 4, requires_grad=True)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    mask_pool(features, hard_masks(logits)).sum().backward()
    assert features.grad is not None and features.grad.any()
    assert logits.grad is None


@pytest.mark.parametrize(("name", "interaction"), VARIANTS)
def test_embeddings_have_unit_norm_also_for_empty_masks(name: str, interaction: str) -> None:
    sam, clip = tokens()
    sam[0, 0], clip[0, 0] = 0.0, 0.0
    out = pooling(name, interaction)(sam, clip)
    assert out.shape == (2, 5, 12)
    assert_close(out.norm(dim=-1), torch.ones(2, 5))


@pytest.mark.parametrize(("name", "interaction"), VARIANTS)
def test_permuting_masks_permutes_embeddings(name: str, interaction: str) -> None:
    module, (sam, clip) = pooling(name, interaction), tokens()
    order = torch.tensor([3, 0, 4, 2, 1])
    assert_close(module(sam[:, order], clip[:, order]), module(sam, clip)[:, order])


@pytest.mark.parametrize(("name", "interaction"), VARIANTS)
def test_images_do_not_meet(name: str, interaction: str) -> None:
    module, (sam, clip) = pooling(name, interaction), tokens()
    together = module(sam, clip)
    for image in range(2):
        alone = module(sam[image : image + 1], clip[image : image + 1])
        assert_close(alone[0], together[image])


@pytest.mark.parametrize(
    ("name", "interaction", "sees_sam", "sees_clip", "sees_other_masks"),
    [
        ("ldp", "mask", True, True, False),
        ("ldp", "image", True, True, True),
        ("cross_attention", "mask", True, True, True),
        ("region", "mask", True, False, False),
        ("clip", "mask", False, True, False),
        ("fcclip", "mask", True, False, False),
    ],
)
def test_what_an_embedding_depends_on(
    name: str, interaction: str, sees_sam: bool, sees_clip: bool, sees_other_masks: bool
) -> None:
    module, (sam, clip) = pooling(name, interaction), tokens()
    sam.requires_grad_()
    clip.requires_grad_()
    (module(sam, clip)[0, 2] * torch.arange(12)).sum().backward()
    reach = [torch.zeros_like(x) if x.grad is None else x.grad for x in (sam, clip)]
    own = [bool((grad[0, 2].abs() > 1e-6).any()) for grad in reach]
    others = max(float(grad[0, [0, 1, 3, 4]].abs().max()) for grad in reach)
    assert own == [sees_sam, sees_clip]
    assert (others > 1e-6) == sees_other_masks
