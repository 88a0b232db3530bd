"""Images without targets, whole micro-batches and steps of them: they train void, and only void."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from possam.datasets.format import ImageRecord, Segment
from possam.training.distributed import TrainingProcess, single_process
from possam.training.feature_cache import CachedFeatures, cache_features
from possam.training.live_source import LiveSource
from possam.training.losses import Criterion
from possam.training.sharding import BatchSharding
from possam.training.sources import CachedSource, Source
from possam.training.targets import Batch, Target
from possam.training.trainer import LOGGED, Trainer
from tests.support.fake_cuda import CUDA, FakeCuda
from tests.support.model_fakes import STAGES, TWO_WAY
from tests.support.training_fakes import (
    FakeDataset,
    FakeSource,
    augmentation,
    loss_params,
    possam,
    text_embeddings,
    training_params,
)
from tests.training.test_loop import metrics_of, train, trainer_of

MODELS: dict[str, dict[str, Any]] = {
    "ldp": {},
    "ldp of the image": {"pooling_interaction": "image"},
    "no FPN, no IoU head": {"pyramid": "resample", "pooling": "clip", "iou_head": False},
    "region pooling": {"pooling": "region"},
    "CLIP pooling": {"pooling": "clip"},
    "cross-attention": {"pooling": "cross_attention"},
    "two-way": {**TWO_WAY, "hidden_dim": 16},
    "FC-CLIP": {**STAGES, "backbone_channels": [4, 4, 6, 6]},
}


def target(count: int, size: tuple[int, int] = (16, 16)) -> Target:
    """``count`` segments, of vertical stripes."""
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for number in range(count):
        masks[number, :, 2 * number : 2 * number + 4] = True
    return Target(masks=masks, labels=torch.arange(count) % 3)


def batch(counts: Sequence[int], *, stages: bool = False, seed: int = 0) -> Batch:
    """Random features of images with ``counts`` segments."""
    draw = torch.Generator().manual_seed(seed)

    def level(channels: int, side: int) -> torch.Tensor:
        return torch.randn(len(counts), channels, side, side, generator=draw)

    maps = (level(4, 8), level(4, 4), level(6, 2), level(6, 1)) if stages else (level(4, 4),)
    return Batch(
        backbone=maps,
        clip_features=maps[-1] if stages else level(6, 4),
        targets=[target(count, (32, 32)) for count in counts],
    )


def trainer(name: str, precision: str, device: torch.device) -> Trainer:
    """A trainer of steps of two micro-batches of two images."""
    with device:
        model = possam(**MODELS[name])
    return Trainer(
        model=model,
        text=text_embeddings(),
        training=training_params(precision=precision, batch_size=4),
        loss=loss_params(),
        seed=0,
        process=TrainingProcess(device=device),
    )


STEPS = (((0, 0), (2, 1)), ((0, 3), (0, 0)), ((0, 0), (0, 0)))
"""Segments of the images of both micro-batches."""


def case(counts: Sequence[int], size: tuple[int, int]) -> dict[str, Any]:
    """Logits of 2 layers, 5 queries and 3 classes."""
    draw = torch.Generator().manual_seed(1)
    shape = (2, len(counts), 5)
    return {
        "mask_logits": torch.randn(*shape, 8, 8, generator=draw).requires_grad_(),
        "class_logits": torch.randn(*shape, 4, generator=draw).requires_grad_(),
        "iou_logits": torch.randn(*shape, generator=draw).requires_grad_(),
        "targets": [target(count, size) for count in counts],
        "generator": torch.Generator().manual_seed(0),
    }


@pytest.mark.parametrize("size", [(16, 16), (17, 15)])
@pytest.mark.parametrize("step", [(0, 0), (0, 0, 3, 7)])
def test_the_loss_without_targets_is_the_void_term(
    step: tuple[int, ...], size: tuple[int, int]
) -> None:
    """Over the weights of all images of the step, of which those with targets are elsewhere."""
    inputs = case((0, 0), size)
    found = Criterion(loss_params())(**inputs, counts=step)
    surprise = -inputs["class_logits"].log_softmax(-1)[..., 3]
    matched = min(3, 5) + min(7, 5) if len(step) == 4 else 0
    weights = 0.1 * (5 * len(step) - matched) + matched
    expected = 0.1 * surprise.flatten(1).sum(1) / weights
    torch.testing.assert_close(found.terms["class"], expected.detach())
    torch.testing.assert_close(found.total, 2.0 * expected.sum())
    assert not any(found.terms[name].any() for name in ("bce", "dice", "iou"))

    found.total.backward()
    assert not inputs["mask_logits"].grad.any() and not inputs["iou_logits"].grad.any()
    (by_hand,) = torch.autograd.grad(2.0 * expected.sum(), inputs["class_logits"])
    torch.testing.assert_close(inputs["class_logits"].grad, by_hand)


def test_masks_of_any_size_may_be_missing_in_one_image_or_in_all() -> None:
    """Sizes that the masks' logits do not divide, too."""
    for counts in ((0, 2), (2, 0), (0, 0)):
        inputs = case(counts, (17, 15))
        Criterion(loss_params())(**inputs).total.backward()
        for name in ("mask_logits", "class_logits", "iou_logits"):
            assert torch.isfinite(inputs[name].grad).all()


def test_a_step_that_weighs_nothing_has_a_loss_of_zero() -> None:
    inputs = case((0, 0), (16, 16))
    found = Criterion(loss_params(void_weight=0.0))(**inputs)
    found.total.backward()
    assert found.total.item() == 0.0
    assert not inputs["class_logits"].grad.any()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_empty_micro_batches_train_on_a_cpu(name: str, precision: str) -> None:
    """In any place of a step: the same weights get gradients, or micro-batches would not add up."""
    for counts in STEPS:
        stages = name == "FC-CLIP"
        own = [batch(images, stages=stages, seed=n) for n, images in enumerate(counts)]
        good, values = trainer(name, precision, torch.device("cpu")).step(0, own)
        assert good
        logged = dict(zip(LOGGED, values, strict=True))
        assert logged["class"] > 0 and logged["grad_norm"] > 0
        if not any(map(sum, counts)):
            assert logged["bce"] == logged["dice"] == logged["iou"] == 0
            assert logged["loss"] == pytest.approx(2 * logged["class"])


@pytest.mark.parametrize("name", MODELS)
def test_empty_micro_batches_train_on_cuda(name: str) -> None:
    """Every operator takes them, under CUDA's autocast."""
    with FakeCuda() as device:
        own = trainer(name, "bf16", CUDA)
        device.name_modules(own.model)
        batches = [batch(images, stages=name == "FC-CLIP") for images in ((0, 0), (2, 1))]
        assert own.step(0, batches)[0]


def test_an_empty_micro_batch_adds_what_it_adds_in_one_batch() -> None:
    """Only the class loss, whose matching and value no random points decide."""
    gradients = []
    whole = batch((0, 0, 2, 3))
    halves = [
        Batch(
            backbone=(whole.backbone[0][half],),
            clip_features=whole.clip_features[half],
            targets=whole.targets[half],
        )
        for half in (slice(0, 2), slice(2, 4))
    ]
    for batches in ([whole], halves):
        own = trainer_of(possam(), batch_size=4, micro_batch=4 // len(batches))
        weights = loss_params(bce_weight=0.0, dice_weight=0.0, iou_weight=0.0)
        own.criterion = Criterion(weights)
        assert own.step(0, batches)[0]
        gradients.append([parameter.grad for parameter in own.model.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


class EmptySource(FakeSource):
    """All images, or those with an odd number, have no segments."""

    def __init__(self, *, odd_only: bool) -> None:
        super().__init__(sharding=BatchSharding(batch_size=2, micro_batch=1))
        self._odd_only = odd_only

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for batches in super().batches(start, stop):
            yield [replace(own, targets=[self._emptied(own)]) for own in batches]

    def _emptied(self, own: Batch) -> Target:
        (found,), (index,) = own.targets, own.indices
        keep = self._odd_only and index % 2 == 0
        return found if keep else Target(masks=found.masks[:0], labels=found.labels[:0])


@pytest.mark.parametrize("odd_only", [True, False])
def test_a_training_on_images_without_segments(tmp_path: Path, odd_only: bool) -> None:
    training = training_params(micro_batch=1, log_every=1)
    summary = train(tmp_path, source=EmptySource(odd_only=odd_only), training=training)
    lines = metrics_of(tmp_path)
    assert summary["skipped"] == 0 and len(lines) == 6
    assert all(line["class"] > 0 for line in lines)
    if not odd_only:
        assert all(line["bce"] == line["dice"] == line["iou"] == 0 for line in lines)


@dataclass
class Sparse(FakeDataset):
    """Images that are void but for a corner, and images that are void altogether."""

    empty: Sequence[int] = ()

    def _record(self, index: int) -> ImageRecord:
        corner = Segment(id=7, category=2, area=1, bbox=(0, 0, 1, 1), is_crowd=False)
        segments = () if index in self.empty else (corner,)
        return replace(super()._record(index), segments=segments)

    def panoptic(self, index: int) -> np.ndarray:
        ids = np.zeros((16, 16), dtype=np.int32)
        ids[:4, :4] = 0 if index in self.empty else 7
        return ids


def trains(source: Source, steps: int) -> list[list[int]]:
    """Targets of each image of each micro-batch, all of which are trained."""
    counts = []
    for step, batches in enumerate(source.batches(0, steps)):
        model = possam(clip_channels=3, backbone_channels=[3], pyramid="resample")
        assert trainer_of(model).step(step, batches)[0]
        for own in batches:
            assert all(t.masks.dtype == torch.bool and t.masks.dim() == 3 for t in own.targets)
            counts.append([len(t.labels) for t in own.targets])
    return counts


@pytest.mark.parametrize("empty", [(1, 2), (0, 1, 2, 3)])
def test_cached_images_without_labels(tmp_path: Path, empty: Sequence[int]) -> None:
    dataset = Sparse(count=4, empty=empty)
    cache_features(
        encode=lambda images: (avg_pool2d(images, 4),),
        dataset=dataset,
        out=tmp_path / "cache",
        tower_hash="t",
        flipped=True,
        batch_size=2,
        workers=0,
    )
    features = CachedFeatures.open(tmp_path / "cache", dataset_content="data-1", tower_hash="t")
    source = CachedSource(
        sam=features,
        clip=features,
        dataset=dataset,
        training=training_params(augmentation=augmentation("flip")),
        process=single_process("cpu"),
        seed=0,
    )
    found = trains(source, 2)
    assert sorted(chain(*found)) == [0] * len(empty) + [1] * (4 - len(empty))


def test_live_images_without_labels_and_crops_that_lose_all_segments() -> None:
    jitter = {"size": 16, "min_scale": 2.0, "max_scale": 2.0}  # a quarter of the image is kept
    training = training_params(augmentation=augmentation("lsj", **jitter), feature_cache=False)
    source = LiveSource(
        dataset=Sparse(count=4, empty=(3,)),
        encode=lambda images: ((avg_pool2d(images, 4),), avg_pool2d(images, 4)),
        multiple=8,
        padding=(124, 116, 104),
        training=training,
        process=single_process("cpu"),
        seed=0,
    )
    found = trains(source, 8)
    assert [0, 0] in found  # whole micro-batches
    assert 1 in chain(*found)
