"""Small data set, source and model, shared by the tests of training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from possam.datasets.format import ImageRecord, Segment
from possam.datasets.options import AugmentationOptions
from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM, rebuild_possam
from possam.training.checkpoint import WeightsMetadata
from possam.training.options import LossOptions, TrainingOptions
from possam.training.sharding import BatchSharding
from possam.training.sources import SampleOrder
from possam.training.targets import Batch, Target

MODEL: dict[str, Any] = {
    "backbone_channels": [4],
    "clip_channels": 6,
    "embed_dim": 8,
    "backbone": "sam",
    "hidden_dim": 8,
    "queries": 4,
    "heads": 2,
    "pyramid": "fpn",
    "pixel_encoder_layers": 1,
    "pixel_encoder_ffn": 16,
    "deformable_points": 2,
    "decoder": "mask2former",
    "decoder_layers": 1,
    "decoder_ffn": 16,
    "pooling": "ldp",
    "pooling_dim": 8,
    "pooling_heads": 2,
    "pooling_interaction": "mask",
    "region_features": "mask_features",
    "mask_pooling": "area",
    "padding": (124, 116, 104),
    "initial_temperature": 0.1,
    "iou_head": True,
}
FROZEN = {"sam": "a" * 8, "clip": "c" * 8}
VOCABULARY = [("cat",), ("dog", "puppy")]


def weights_metadata(**changes: Any) -> WeightsMetadata:
    values: dict[str, Any] = {
        "model_kwargs": MODEL,
        "identity": {"run": "a"},
        "frozen": FROZEN,
        "vocabulary": VOCABULARY,
    }
    return WeightsMetadata(**{**values, **changes})


def loss_params(**changes: Any) -> LossOptions:
    values = {
        "class_weight": 2.0,
        "bce_weight": 5.0,
        "dice_weight": 5.0,
        "iou_weight": 1.0,
        "void_weight": 0.1,
        "points": 16,
        "oversample": 3.0,
        "importance": 0.75,
    }
    return LossOptions(**{**values, **changes})


def augmentation(policy: str = "none", **changes: Any) -> AugmentationOptions:
    values = {"policy": policy, "size": 16, "min_scale": 1.0, "max_scale": 1.0}
    return AugmentationOptions(**{**values, **changes})


def training_params(**changes: Any) -> TrainingOptions:
    values = {
        "iterations": 6,
        "batch_size": 2,
        "micro_batch": 2,
        "learning_rate": 1e-3,
        "weight_decay": 0.05,
        "warmup": 2,
        "milestones": (4, 5),
        "gamma": 0.1,
        "clip_norm": 1.0,
        "precision": "fp32",
        "activation_checkpointing": False,
        "feature_cache": True,
        "augmentation": augmentation(),
        "checkpoint_every": 2,
        "log_every": 3,
        "workers": 0,
    }
    return TrainingOptions(**{**values, **changes})


def text_embeddings(num_classes: int = 3, channels: int = 8) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(5)
    names = torch.randn(num_classes, channels, generator=generator)
    return TextEmbeddings(
        nn.functional.normalize(names, dim=-1), torch.arange(num_classes), num_classes
    )


def possam(**changes: Any) -> PosSAM:
    return rebuild_possam({**MODEL, **changes}, seed=3)


class DropoutPosSAM(nn.Module):
    """PosSAM whose input passes a dropout, so that the global random state matters."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = possam()
        self.dropout = nn.Dropout(0.3)
        self.class_logits = self.inner.class_logits

    def forward(self, backbone: tuple[Tensor, ...], clip_features: Tensor, **options: Any) -> Any:
        backbone = tuple(self.dropout(level) for level in backbone)
        return self.inner(backbone, clip_features, **options)


def scene(index: int, size: int = 16) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Id map with void, and (id, category) pairs; ids are as large as COCO's."""
    generator = np.random.default_rng(index)
    ids = np.zeros((size, size), dtype=np.int32)
    pairs = [(70_000 + 1000 * number, int(generator.integers(3))) for number in range(1, 4)]
    for identity, _ in pairs:
        top, left = generator.integers(0, size // 2, 2)
        ids[top : top + size // 2, left : left + size // 2] = identity
    return ids, [pair for pair in pairs if (ids == pair[0]).any()]


class FakeSource:
    """Random features that depend only on the image.

    ``poison``: numbers of the micro-batches whose features are not finite.
    """

    def __init__(
        self, *, poison: frozenset[int] = frozenset(), sharding: BatchSharding | None = None
    ) -> None:
        self.num_classes = 3
        self.sharding = sharding or BatchSharding(batch_size=2, micro_batch=2)
        self._order = SampleOrder(5, seed=0)
        self._poison = poison

    def batches(self, start: int, stop: int) -> Iterator[list[Batch]]:
        for step in range(start, stop):
            yield [self._batch(step, index) for index in self.sharding.own]

    def _batch(self, step: int, micro_batch: int) -> Batch:
        indices = self._order.indices(self.sharding.samples(step, micro_batch))
        sam, clip = [], []
        for index in indices:
            generator = torch.Generator().manual_seed(index)
            sam.append(torch.randn(4, 4, 4, generator=generator))
            clip.append(torch.randn(6, 4, 4, generator=generator))
        features = torch.stack(sam)
        if self.sharding.number(step, micro_batch) in self._poison:
            features = features * float("nan")
        return Batch(
            backbone=(features,),
            clip_features=torch.stack(clip),
            targets=[self._target(index) for index in indices],
            indices=indices,
        )

    @staticmethod
    def _target(index: int) -> Target:
        ids, pairs = scene(index)
        masks = torch.stack([torch.from_numpy(ids == identity) for identity, _ in pairs])
        return Target(masks=masks, labels=torch.tensor([category for _, category in pairs]))


@dataclass
class FakeDataset:
    """The reading interface of a converted data set, in memory."""

    count: int = 6
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    crowd: bool = False
    name: str = "fake"
    split: str = "train"
    images: Sequence[ImageRecord] = ()

    def __post_init__(self) -> None:
        self.categories = tuple(range(3))
        self.manifest = {"content": "data-1"}
        self.images = self.images or tuple(self._record(index) for index in range(self.count))

    def _record(self, index: int) -> ImageRecord:
        height, width = self.sizes.get(index, (16, 16))
        segments = tuple(
            Segment(
                id=identity,
                category=category,
                area=1 + index,
                bbox=(0, index, 2, 1),
                is_crowd=self.crowd and number == 0,
            )
            for number, (identity, category) in enumerate(scene(index)[1])
        )
        return ImageRecord(
            id=100 + index,
            file=Path(f"images/{index}.png"),
            width=width,
            height=height,
            panoptic=Path(f"panoptic/{index}é.png"),
            semantic=Path(f"semantic/{index}.png"),
            segments=segments,
        )

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> np.ndarray:
        height, width = self.sizes.get(index, (16, 16))
        return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def panoptic(self, index: int) -> np.ndarray:
        height, width = self.sizes.get(index, (16, 16))
        return np.pad(scene(index)[0], ((0, max(0, height - 16)), (0, max(0, width - 16))))[
            :height, :width
        ]
