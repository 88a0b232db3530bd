"""Small models and towers for the tests of the network."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.options import InferenceOptions, ModelOptions
from possam.model.possam import PosSAM, rebuild_possam

SMALL: dict[str, Any] = {
    "backbone_channels": (16,),
    "clip_channels": 24,
    "embed_dim": 20,
    "seed": 3,
    "padding": (124, 116, 104),
    "backbone": "sam",
    "hidden_dim": 32,
    "queries": 7,
    "heads": 4,
    "pyramid": "fpn",
    "pixel_encoder_layers": 1,
    "pixel_encoder_ffn": 40,
    "deformable_points": 2,
    "decoder": "mask2former",
    "decoder_layers": 4,
    "decoder_ffn": 48,
    "pooling": "ldp",
    "pooling_dim": 16,
    "pooling_heads": 2,
    "pooling_interaction": "mask",
    "region_features": "mask_features",
    "mask_pooling": "area",
    "initial_temperature": 0.07,
    "iou_head": True,
}
TWO_WAY: dict[str, Any] = {"decoder": "two_way", "pyramid": None, "pixel_encoder_layers": 0}
STAGES: dict[str, Any] = {
    "backbone": "clip",
    "backbone_channels": (8, 12, 18, 24),
    "pyramid": "stages",
    "pooling": "fcclip",
    "region_features": "mask_features_and_queries",
    "mask_pooling": "resized_logits",
    "iou_head": False,
}
"""FC-CLIP: masks from CLIP's stages, and its own head and pooling."""


def small_possam(**changes: Any) -> PosSAM:
    """A PosSAM that runs in milliseconds."""
    description = {**SMALL, **changes}
    return rebuild_possam(description, seed=description.pop("seed"))


def model_options(**changes: Any) -> ModelOptions:
    """The options of :func:`small_possam`."""
    fields = {**SMALL, **changes}
    return ModelOptions(**{name: fields[name] for name in ModelOptions.model_fields})


def inference_options(**changes: Any) -> InferenceOptions:
    """MASE with IoU weighting, images as they are."""
    values: dict[str, Any] = {
        "ensemble": "mase",
        "alpha": 0.4,
        "beta": 0.8,
        "mase_confidence": "class",
        "iou_weighting": True,
        "mask_filter": "objectness",
        "object_threshold": 0.5,
        "overlap_threshold": 0.6,
        "instance_top_k": 10,
        "resolution": {"policy": "native", "size": 64, "max_size": 64},
    }
    return InferenceOptions(**{**values, **changes})


def random_text(
    *, classes: int, synonyms: int = 2, channels: int = SMALL["embed_dim"], seed: int = 0
) -> TextEmbeddings:
    """A vocabulary whose class ``k`` has ``1 + k % synonyms`` names."""
    index = torch.tensor([k for k in range(classes) for _ in range(1 + k % synonyms)])
    generator = torch.Generator().manual_seed(seed)
    names = torch.randn(len(index), channels, generator=generator)
    return TextEmbeddings(F.normalize(names, dim=-1), index, classes)


class FakeSam(nn.Module):
    """A strided convolution with the interface of the SAM encoder."""

    def __init__(self, *, stride: int = 4, channels: int = SMALL["backbone_channels"][0]) -> None:
        super().__init__()
        self.stride, self.channels = stride, channels
        self.conv = nn.Conv2d(3, channels, stride, stride=stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images / 255 - 0.5)


class FakeClip(nn.Module):
    """A strided convolution with the interface of CLIP; names are embedded by their characters."""

    logit_scale = 20.0

    def __init__(
        self,
        *,
        stride: int = 8,
        dense_channels: int = SMALL["clip_channels"],
        embed_dim: int = SMALL["embed_dim"],
    ) -> None:
        super().__init__()
        self.stride, self.dense_channels, self.embed_dim = stride, dense_channels, embed_dim
        self.stage_channels = (*STAGES["backbone_channels"][:3], dense_channels)
        self.stage_strides = (stride // 2, stride, stride, stride)
        self.stages = nn.ModuleList(
            nn.Conv2d(3, channels, stride, stride=stride)
            for channels, stride in zip(self.stage_channels, self.stage_strides, strict=True)
        )
        self.head = nn.Linear(dense_channels, embed_dim)

    def encode_dense(self, images: Tensor) -> Tensor:
        return self.encode_stages(images)[-1]

    def encode_stages(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(stage(images / 255 - 0.5) for stage in self.stages)

    def project(self, pooled: Tensor) -> Tensor:
        return self.head(pooled)

    def encode_text(self, texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            seed = int.from_bytes(text.encode()[-7:], "big")
            rows.append(torch.randn(self.embed_dim, generator=torch.Generator().manual_seed(seed)))
        return F.normalize(torch.stack(rows), dim=-1)
