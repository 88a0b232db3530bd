"""Image in, raw masks and embeddings out: the frozen towers around the trainable part.

Shapes: B images, Q queries, C channels, E CLIP embedding, H W of images.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.ops.fast_linear import FastLinears
from possam.model.options import Colour, Precision
from possam.model.possam import PosSAM
from possam.model.pyramid import SCALES
from possam.model.resolution import pad_image
from possam.runtime.errors import InputError


class SamTower(Protocol):
    """What the SAM encoder needs to have: see ``encoders.sam.SamEncoder``."""

    @property
    def stride(self) -> int: ...
    def __call__(self, images: Tensor) -> Tensor: ...


class ClipTower(Protocol):
    """What CLIP's image side needs to have: see ``encoders.clip.FrozenClip``."""

    @property
    def stride(self) -> int: ...
    @property
    def stage_strides(self) -> tuple[int, ...]: ...
    def encode_dense(self, images: Tensor) -> Tensor: ...
    def encode_stages(self, images: Tensor) -> tuple[Tensor, ...]: ...
    def project(self, pooled: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class RawPrediction:
    """Predictions that do not depend on a vocabulary.

    Attributes:
        mask_logits: (B, Q, h, w) float32, positive inside, covering the padded image.
        ldp_embeddings, clip_embeddings: (B, Q, E) float32, unit norm.
        iou: (B, Q) 0..1, the expected IoU; ``None`` for a model without an IoU head.
        padded_size: (H', W') of the padded images; image_size: (H, W) as given.
    """

    mask_logits: Tensor
    ldp_embeddings: Tensor
    clip_embeddings: Tensor
    iou: Tensor | None
    padded_size: tuple[int, int]
    image_size: tuple[int, int]


class TowerFeatures(nn.Module):
    """The frozen towers: images to the backbone's maps and CLIP's dense map, over one extent."""

    def __init__(
        self, *, sam: SamTower | None, clip: ClipTower, precision: Precision, padding: Colour
    ) -> None:
        """Without SAM the stages of CLIP are the backbone, as in FC-CLIP."""
        super().__init__()
        self.padding = padding
        self.sam, self.clip = sam, clip
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        finest = clip.stage_strides[0]
        coarsest = finest * 2 ** (SCALES - 1) if sam is None else 2 * sam.stride
        # Padded sides are multiples of it, so that the maps of all scales cover one extent.
        self.multiple = math.lcm(coarsest, clip.stride)

    def padded_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """The size to which images of ``image_size`` are padded."""
        height, width = image_size
        return height + -height % self.multiple, width + -width % self.multiple

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Images (B, 3, H, W), float RGB, 0..255, padded here on the right and below -> maps.

        The maps are the backbone's, finest first (SAM's one (B, Cs, h, w), or CLIP's stages), and
        CLIP's dense map (B, Cc, h', w'), in the towers' precision.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise InputError(f"images: (B, 3, H, W) is expected, not {tuple(images.shape)}")
        size = self.padded_size((images.shape[-2], images.shape[-1]))
        padded = pad_image(images, size, padding=self.padding)
        reduced = self.dtype != torch.float32
        with torch.autocast(images.device.type, torch.bfloat16, enabled=reduced), FastLinears():
            if self.sam is None:
                backbone = self.clip.encode_stages(padded)
                dense = backbone[-1]
            else:
                backbone, dense = (self.sam(padded),), self.clip.encode_dense(padded)
        return tuple(level.to(self.dtype) for level in backbone), dense.to(self.dtype)


class Segmenter(nn.Module):
    """The frozen towers with PosSAM's trainable part."""

    def __init__(
        self, *, sam: SamTower | None, clip: ClipTower, possam: PosSAM, precision: Precision
    ) -> None:
        super().__init__()
        self.features = TowerFeatures(
            sam=sam, clip=clip, precision=precision, padding=possam.padding
        )
        self.possam = possam

    @property
    def clip(self) -> Any:
        """The CLIP tower, which also embeds names."""
        return self.features.clip

    def forward(self, images: Tensor) -> RawPrediction:
        """Predict from images (B, 3, H, W), float RGB, 0..255."""
        size = (images.shape[-2], images.shape[-1])
        return self.predict_from_features(*self.features(images), image_size=size)

    def predict_from_features(
        self,
        backbone: tuple[Tensor, ...],
        clip_features: Tensor,
        *,
        image_size: tuple[int, int],
        masks: Tensor | None = None,
    ) -> RawPrediction:
        """Predict from what ``features`` returned for images of ``image_size``; see PosSAM."""
        with FastLinears():
            output = self.possam(backbone, clip_features, masks=masks)
        last = output.layers[-1]
        with torch.autocast(clip_features.device.type, enabled=False):
            clip_embeddings = F.normalize(self.clip.project(output.clip_pooled).float(), dim=-1)
        iou = None if last.iou_logits is None else last.iou_logits.float().sigmoid()
        return RawPrediction(
            mask_logits=last.mask_logits.float(),
            ldp_embeddings=last.embeddings,
            clip_embeddings=clip_embeddings,
            iou=iou,
            padded_size=self.features.padded_size(image_size),
            image_size=image_size,
        )
