"""SAM + CLIP without training: SAM's automatic masks, named by CLIP's features inside them.

The floor under every trained row, and Figure 1's claim in numbers: SAM finds parts as well as
wholes and knows no names, CLIP names whatever mask it is given.

Shapes: B images, M masks, K classes, E CLIP embedding, H W of images.
"""

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.encoders.automatic_masks import automatic_masks
from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import AutomaticMaskOptions, Colour, Precision
from possam.model.pooling import hard_masks, mask_pool
from possam.model.segmenter import RawPrediction, Segmenter, TowerFeatures

_LOGIT = 20.0
"""Of a pixel inside a mask, whose probability is then 1 - 2e-9; outside, its negative."""


class _NamedByClip(nn.Module):
    """Classifies in place of a trained part: CLIP's own temperature, and no mask is void."""

    def __init__(self, logit_scale: float) -> None:
        super().__init__()
        self.logit_scale = logit_scale

    def class_logits(self, embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        """(..., E) of unit norm -> (..., K + 1) float32; the last, void, is minus infinity."""
        logits = self.logit_scale * text.similarity(embeddings.float())
        return F.pad(logits, (0, 1), value=-torch.inf)


class TrainingFreeSegmenter(Segmenter):
    """SAM + CLIP in the place of a trained :class:`~possam.model.segmenter.Segmenter`.

    Everything after it is as for a trained one: vocabulary, ensemble (both of its branches are
    CLIP's here, so that all ensembles agree), weighting by the expected IoU (SAM's own), merging.
    Masks of parts compete with those of wholes by their scores. SAM runs in float32, CLIP in
    ``precision``.
    """

    def __init__(
        self,
        *,
        sam: Sam,
        clip: FrozenClip,
        options: AutomaticMaskOptions,
        precision: Precision,
        padding: Colour,
    ) -> None:
        """``sam``: the whole SAM, mask decoder included; ``options``: how its masks are made."""
        nn.Module.__init__(self)
        self.features = TowerFeatures(sam=None, clip=clip, precision=precision, padding=padding)
        self.possam = _NamedByClip(clip.logit_scale)  # type: ignore[assignment] # nothing trained
        self.sam, self.options = sam.requires_grad_(False).eval(), options

    @torch.inference_mode()
    def forward(self, images: Tensor) -> RawPrediction:
        """Predict from images (B, 3, H, W), float RGB, 0..255, which SAM reads as whole numbers.

        M is the largest number of masks of an image (at least 1); images with fewer are filled up
        with empty masks of IoU 0.
        """
        batch, _, height, width = images.shape
        padded = self.features.padded_size((height, width))
        bytes_ = images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        found = [automatic_masks(self.sam, image, self.options) for image in bytes_]
        most = max(1, *(len(each.iou) for each in found))
        logits = torch.full((batch, most, *padded), -_LOGIT, device=images.device)
        iou = torch.zeros(batch, most, device=images.device)
        for row, each in enumerate(found):
            masks = torch.from_numpy(each.masks).to(images.device)
            logits[row, : len(masks), :height, :width].masked_fill_(masks, _LOGIT)
            iou[row, : len(masks)] = torch.from_numpy(each.iou)
        dense = self.features(images)[1]
        pooled = mask_pool(dense.float(), hard_masks(logits))
        with torch.autocast(images.device.type, enabled=False):
            embeddings = F.normalize(self.clip.project(pooled).float(), dim=-1)
        return RawPrediction(
            mask_logits=logits,
            ldp_embeddings=embeddings,
            clip_embeddings=embeddings,
            iou=iou,
            padded_size=padded,
            image_size=(height, width),
        )
