"""PosSAM put together from unchanged modules of other libraries: what one would write in a day.

``segment_anything``'s encoder, ``open_clip``'s image tower and ``transformers``' Mask2Former
decoders, with the weights of a :class:`~possam.model.segmenter.Segmenter`, and FC-CLIP's
post-processing, which first scales all masks to the image's size. Parts that only PosSAM has (its
pyramid and heads) run this project's code on both sides.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import Geometry, MaskScores, classify
from possam.model.options import InferenceOptions, ModelOptions
from possam.model.pooling import hard_masks, mask_pool
from possam.model.region_decoder import Mask2FormerDecoder
from possam.model.segmenter import RawPrediction, Segmenter
from possam.training.mask2former import convert_mask2former, rename_mask2former


class NaiveTowers(nn.Module):
    """The frozen towers of a segmenter as their libraries run them, in their precision."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        # Their types do not name these attributes.
        towers: Any = segmenter.features
        self.sam, self.clip, self.dtype = towers.sam, towers.clip, towers.dtype

    def autocast(self, device: torch.device) -> torch.autocast:
        """Mixed precision, where the towers have it."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype != torch.float32)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) float RGB 0..255, sides multiples of the towers' strides -> SAM's map
        (B, Cs, h, w) and CLIP's dense map (B, Cc, h', w').
        """
        sam, clip = self.sam, self.clip
        with self.autocast(images.device):
            neck = sam.encoder((images - sam.pixel_mean) / sam.pixel_std)
            trunk = clip.model.visual.trunk
            return neck, trunk.forward_features((images - clip.image_mean) / clip.image_std)


class NaivePosSAM(nn.Module):
    """The same network as ``segmenter``.

    ``seed``: of random weights, which the decoders of both receive; None: those of ``segmenter``.
    """

    def __init__(self, segmenter: Segmenter, params: ModelOptions, *, seed: int | None) -> None:
        super().__init__()
        decoder = segmenter.possam.decoder
        if not isinstance(decoder, Mask2FormerDecoder):
            raise TypeError("a Mask2Former decoder is needed")
        self.segmenter, self.towers = segmenter, NaiveTowers(segmenter)
        self.pyramid = decoder.pyramid
        self.theirs: Any = reference_decoders(decoder, params, seed=seed).eval()

    @torch.no_grad()
    def forward(self, image: Tensor) -> RawPrediction:
        """(1, 3, H, W) float RGB 0..255, sides multiples of the towers' strides."""
        possam = self.segmenter.possam
        neck, dense = self.towers(image)
        neck, dense = neck.float(), dense.float()
        decoded = self.theirs.pixel_level_module.decoder(list(self.pyramid(neck)))
        found = self.theirs.transformer_module(
            list(decoded.multi_scale_features), decoded.mask_features
        )
        masks = found.masks_queries_logits[-1]
        queries = found.intermediate_hidden_states[-1].transpose(0, 1)
        inside = hard_masks(masks)
        clip_tokens = mask_pool(dense, inside)
        pooled = possam.pooling(mask_pool(decoded.mask_features, inside), clip_tokens)
        size = (image.shape[-2], image.shape[-1])
        return RawPrediction(
            mask_logits=masks,
            ldp_embeddings=pooled,
            clip_embeddings=F.normalize(self.segmenter.clip.project(clip_tokens), dim=-1),
            iou=None if possam.iou_head is None else possam.iou_head(queries).squeeze(-1).sigmoid(),
            padded_size=size,
            image_size=size,
        )


def reference_decoders(
    decoder: Mask2FormerDecoder, params: ModelOptions, *, seed: int | None
) -> nn.Module:
    """``transformers``' pixel decoder (``pixel_level_module.decoder``) and mask decoder
    (``transformer_module``) with the sizes of ``decoder`` and its weights; with a ``seed``,
    ``decoder`` receives their random weights instead."""
    width = params.hidden_dim
    # Imported here: the module's post-processing needs none of it, and it takes seconds.
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former import modeling_mask2former as mask2former

    config = Mask2FormerConfig(
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        encoder_feedforward_dim=params.pixel_encoder_ffn,
        dim_feedforward=params.decoder_ffn,
        encoder_layers=params.pixel_encoder_layers,
        decoder_layers=params.decoder_layers + 1,  # the prediction before the first layer counts
        num_attention_heads=params.heads,
        num_queries=params.queries,
        dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        theirs = nn.Module()
        theirs.pixel_level_module = nn.Module()
        pixel_decoder = mask2former.Mask2FormerPixelDecoder(config, feature_channels=[width] * 4)
        # The library initialises it only in a whole model; until then it is undefined.
        nn.init.normal_(pixel_decoder.level_embed)
        theirs.pixel_level_module.decoder = pixel_decoder
        theirs.transformer_module = mask2former.Mask2FormerTransformerModule(width, config)
    own = nn.ModuleDict(
        {"pixel_decoder": decoder.pixel_decoder, "mask_decoder": decoder.mask_decoder}
    )
    if seed is None:
        _take_over(theirs, own.state_dict())
    converted = convert_mask2former(theirs.state_dict(), target=own.state_dict())
    own.load_state_dict(converted.tensors)
    return theirs


@torch.no_grad()
def _take_over(theirs: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give ``theirs`` the ``weights`` of our decoders, whose projections are not fused."""
    for name, value in theirs.state_dict().items():
        value.copy_(torch.cat([weights[own] for own in rename_mask2former({name: value})]))


def naive_results(
    raw: RawPrediction, scores: MaskScores, *, is_thing: Tensor, inference: InferenceOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """FC-CLIP's post-processing of one image, on masks of the image's size.

    Returns:
        Classes of the panoptic segments (H, W; -1 void), semantic labels (H, W), and the scores of
        the instances, best first.
    """
    masks = F.interpolate(
        raw.mask_logits, size=raw.image_size, mode="bilinear", align_corners=False
    )[0].sigmoid()
    semantic = torch.einsum("qc,qhw->chw", scores.class_scores[0], masks).argmax(0)
    panoptic = naive_panoptic(masks, scores, is_thing=is_thing, inference=inference)

    pairs = scores.class_scores[0]
    values, top = pairs.flatten().topk(inference.instance_top_k)
    things = is_thing[top % pairs.shape[-1]]
    shapes = masks[(top // pairs.shape[-1])[things]]
    hard = (shapes > 0.5).float()
    quality = (shapes * hard).flatten(1).sum(1) / (hard.flatten(1).sum(1) + 1e-6)
    found = (values[things] * quality).sort(descending=True).values
    return panoptic, semantic, found


def naive_panoptic(
    masks: Tensor, scores: MaskScores, *, is_thing: Tensor, inference: InferenceOptions
) -> Tensor:
    """Classes of one image's panoptic segments (H, W; -1 void) from probabilities of its masks
    (Q, H, W)."""
    kept = scores.kept(inference.mask_filter, inference.object_threshold)[0]
    weights, labels, own = scores.scores[0][kept], scores.labels[0][kept], masks[kept]
    ids = torch.zeros(masks.shape[-2:], dtype=torch.int32, device=masks.device)
    stuff: dict[int, int] = {}
    classes = [-1]
    if len(own):
        winner = (weights[:, None, None] * own).argmax(0)
        for k in range(len(own)):
            area = (own[k] >= 0.5).sum()
            won = (winner == k) & (own[k] >= 0.5)
            if not won.any() or (winner == k).sum() / area < inference.overlap_threshold:
                continue
            label = int(labels[k])
            if not is_thing[label] and label in stuff:
                ids[won] = stuff[label]
                continue
            ids[won] = len(classes)
            if not is_thing[label]:
                stuff[label] = len(classes)
            classes.append(label)
    return torch.tensor(classes, device=ids.device)[ids]


def classify_with(
    segmenter: Segmenter,
    raw: RawPrediction,
    text: TextEmbeddings,
    seen: Tensor,
    inference: InferenceOptions,
) -> MaskScores:
    """The ensemble's scores; both sides use the same code."""
    return classify(
        raw,
        text,
        possam=segmenter.possam,
        clip_logit_scale=segmenter.clip.logit_scale,
        seen=seen,
        options=inference,
    )


def whole(size: tuple[int, int]) -> Geometry:
    """Geometry of an image that was neither resized nor padded."""
    return Geometry(padded=size, content=size, output=size)
