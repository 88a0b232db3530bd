"""A training step of PosSAM put together from unchanged modules of other libraries.

``transformers``' Mask2Former decoders and its criterion, on sampled points as Mask2Former's, or on
whole masks as MaskFormer's before it; layers and images one after the other. Parts that only
PosSAM has (pyramid, pooling, IoU head) run this project's code on both sides.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as transforms
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as mask2former

from benchmarks.naive import reference_decoders
from possam.datasets.loader import Sample, SegmentationDataset, draw_placement
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import ModelOptions
from possam.model.pooling import hard_masks, mask_pool
from possam.model.possam import PosSAM
from possam.model.region_decoder import Mask2FormerDecoder
from possam.training.options import LossOptions, TrainingOptions
from possam.training.targets import Batch, Target

Masks = Literal["points", "pixels"]
Pairs = list[tuple[Tensor, Tensor]]
"""Matched queries and targets per image."""


class NaiveCriterion:
    """Class and mask losses of all layers, and the squared error of the IoU."""

    def __init__(self, loss: LossOptions, *, classes: int, masks: Masks) -> None:
        """``masks``: losses and costs on sampled points, or on whole masks."""
        configuration: Any = Mask2FormerConfig  # ``num_labels`` is an argument of its base class
        config = configuration(
            num_labels=classes,
            no_object_weight=loss.void_weight,
            train_num_points=loss.points,
            oversample_ratio=loss.oversample,
            importance_sample_ratio=loss.importance,
            class_weight=loss.class_weight,
            mask_weight=loss.bce_weight,
            dice_weight=loss.dice_weight,
        )
        self.loss, self.masks = loss, masks
        # Its annotations say numbers where it takes tensors.
        self.theirs: Any = mask2former.Mask2FormerLoss(config, {})

    def __call__(
        self,
        mask_logits: Sequence[Tensor],
        class_logits: Sequence[Tensor],
        iou_logits: Sequence[Tensor] | None,
        targets: Sequence[Target],
    ) -> Tensor:
        """The weighted sum over layers; masks (B, Q, h, w), classes (B, Q, K + 1), IoU (B, Q)."""
        truth = [target.masks.float() for target in targets]
        labels = [target.labels for target in targets]
        count = self.theirs.get_num_masks(labels, device=labels[0].device)
        total = labels[0].new_zeros((), dtype=torch.float32)
        for layer, (masks, scores) in enumerate(zip(mask_logits, class_logits, strict=True)):
            masks = masks.float()
            if self.masks == "points":
                pairs = self.theirs.matcher(masks, scores, truth, labels)
                found = self.theirs.loss_masks(masks, truth, pairs, count)
            else:
                pairs = self._match(masks, scores, truth, labels)
                found = self._whole_masks(masks, truth, pairs, count)
            found |= self.theirs.loss_labels(scores, labels, pairs)
            total = (
                total
                + self.loss.class_weight * found["loss_cross_entropy"]
                + self.loss.bce_weight * found["loss_mask"]
                + self.loss.dice_weight * found["loss_dice"]
            )
            if iou_logits is not None:
                error = _iou_error(masks, iou_logits[layer].float(), truth, pairs)
                total = total + self.loss.iou_weight * error / count
        return total

    @torch.no_grad()
    def _match(
        self, masks: Tensor, scores: Tensor, truth: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Pairs:
        """Costs over all pixels at the size of the predicted masks, as MaskFormer."""
        from scipy.optimize import linear_sum_assignment

        pairs: Pairs = []
        for image, goal in enumerate(truth):
            small = F.interpolate(goal[None], size=masks.shape[-2:], mode="nearest")[0].flatten(1)
            own = masks[image].flatten(1)
            cost = (
                self.loss.bce_weight * mask2former.pair_wise_sigmoid_cross_entropy_loss(own, small)
                + self.loss.dice_weight * mask2former.pair_wise_dice_loss(own, small)
                - self.loss.class_weight * scores[image].softmax(-1)[:, labels[image]]
            )
            rows, columns = linear_sum_assignment(cost.cpu())
            pairs.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return pairs

    @staticmethod
    def _whole_masks(
        masks: Tensor, truth: Sequence[Tensor], pairs: Pairs, count: Tensor
    ) -> dict[str, Tensor]:
        """Losses over all pixels at the size of the targets, as MaskFormer."""
        found = torch.cat([own[rows] for own, (rows, _) in zip(masks, pairs, strict=True)])
        goals = torch.cat([own[columns] for own, (_, columns) in zip(truth, pairs, strict=True)])
        size = goals.shape[-2:]
        found = F.interpolate(found[:, None], size=size, mode="bilinear", align_corners=False)
        pixels, goal = found[:, 0].flatten(1), goals.flatten(1)
        library: Any = mask2former
        return {
            "loss_mask": library.sigmoid_cross_entropy_loss(pixels, goal, count),
            "loss_dice": library.dice_loss(pixels, goal, count),
        }


def _iou_error(masks: Tensor, iou_logits: Tensor, truth: Sequence[Tensor], pairs: Pairs) -> Tensor:
    """Sum over pairs of the squared error of the predicted IoU."""
    total = masks.new_zeros(())
    for image, (rows, columns) in enumerate(pairs):
        size = masks.shape[-2:]
        small = F.interpolate(truth[image][None], size=size, mode="area")[0] >= 0.5
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            inside = masks[image, row].detach() > 0
            overlap = (inside & small[column]).sum()
            union = (inside | small[column]).sum()
            error = iou_logits[image, row].sigmoid() - overlap / union.clamp(min=1)
            total = total + error**2
    return total


class NaiveTrainer:
    """Steps of the same network as ``possam``, whose decoders receive random weights from here."""

    def __init__(
        self,
        possam: PosSAM,
        *,
        text: TextEmbeddings,
        model: ModelOptions,
        training: TrainingOptions,
        loss: LossOptions,
        masks: Masks,
        seed: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """``masks``: see :class:`NaiveCriterion`; ``seed``: of the decoders' weights."""
        if not isinstance(possam.decoder, Mask2FormerDecoder):
            raise TypeError("a Mask2Former decoder is needed")
        self.device = torch.device(device)
        decoders = reference_decoders(possam.decoder, model, seed=seed)
        self.theirs = decoders.train().to(self.device)
        self.possam = copy.deepcopy(possam).train().to(self.device)
        pyramid: Any = self.possam.decoder.pyramid
        self.pyramid, self.possam.decoder = pyramid, nn.Identity()  # type: ignore[assignment]
        self.text, self.training = text.to(self.device), training
        self.criterion = NaiveCriterion(loss, classes=text.num_classes, masks=masks)
        self.parameters = [
            *self.possam.parameters(), *pyramid.parameters(), *self.theirs.parameters()
        ]  # fmt: skip
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=training.learning_rate, weight_decay=training.weight_decay
        )

    def step(self, batch: Batch) -> float:
        """One optimisation step on a batch that is on the device; returns the loss before it."""
        bf16 = self.training.precision == "bf16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            masks, scores, quality = self.predict(batch)
        loss = self.criterion(masks, scores, quality, batch.targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.training.clip_norm)
        self.optimizer.step()
        return float(loss.detach())

    def predict(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor] | None]:
        """Mask, class and IoU logits of every layer."""
        theirs: Any = self.theirs
        decoded = theirs.pixel_level_module.decoder(list(self.pyramid(*batch.backbone)))
        found = theirs.transformer_module(list(decoded.multi_scale_features), decoded.mask_features)
        masks, scores, quality = list(found.masks_queries_logits), [], []
        for logits, queries in zip(masks, found.intermediate_hidden_states, strict=True):
            inside = hard_masks(logits)
            embeddings = self.possam.pooling(
                mask_pool(decoded.mask_features, inside), mask_pool(batch.clip_features, inside)
            )
            scores.append(self.possam.class_logits(embeddings, self.text))
            if self.possam.iou_head is not None:
                quality.append(self.possam.iou_head(queries.transpose(0, 1)).squeeze(-1))
        return masks, scores, quality or None


def read_sample(samples: SegmentationDataset, index: int) -> Sample:
    """The sample ``samples[index]``, made by torchvision: it scales, cuts and mirrors the image and
    one mask per segment with the same random numbers."""
    if samples.augmentation is None:
        raise ValueError("an augmentation is needed")
    record = samples.dataset.images[index]
    with Image.open(record.file) as photo:
        image: Tensor = tv_tensors.Image(transforms.pil_to_tensor(photo.convert("RGB")))
    with Image.open(record.panoptic) as colours:
        pixels = torch.from_numpy(np.array(colours)).int()
    ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
    segments = [segment for segment in record.segments if not segment.is_crowd]
    masks: Tensor = tv_tensors.Mask(torch.stack([ids == segment.id for segment in segments]))
    placement = draw_placement(
        record.height,
        record.width,
        settings=samples.augmentation,
        generator=torch.Generator().manual_seed(samples.stream(0, index)),
    )
    size = [placement.height, placement.width]
    image, masks = transforms.resize(image, size, antialias=True), transforms.resize(masks, size)
    if placement.size is not None:
        window = (placement.top, placement.left, placement.size, placement.size)
        image, masks = transforms.crop(image, *window), transforms.crop(masks, *window)
    if placement.mirror:
        image, masks = transforms.horizontal_flip(image), transforms.horizontal_flip(masks)
    labels = torch.tensor([segment.category for segment in segments])
    kept = masks.as_subclass(torch.Tensor).flatten(1).any(1)
    return Sample(
        image=image.as_subclass(torch.Tensor),
        masks=masks.as_subclass(torch.Tensor)[kept],
        labels=labels[kept],
        index=index,
    )
