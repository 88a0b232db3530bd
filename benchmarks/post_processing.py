"""The steps after the towers and the pixel decoder, on random predictions or random maps.

Shapes: Q queries, K classes, E CLIP embedding, H W of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from benchmarks.harness import relative_error
from benchmarks.naive import classify_with, naive_results, whole
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import (
    MaskScores,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from possam.model.options import InferenceOptions
from possam.model.region_decoder import Mask2FormerDecoder, RegionDecoder, Regions
from possam.model.segmenter import RawPrediction, Segmenter

KEPT = 20
"""Masks above the objectness threshold, about as many as an image has segments."""

DIFFERENCE = "share of pixels with another class, or relative error of the instances' scores"

Results = tuple[Tensor, Tensor, Tensor]
"""Classes of the panoptic segments (H, W; -1 void), semantic labels (H, W), instances' scores."""


class PostProcessing:
    """From raw predictions of one image to panoptic, instance and semantic results.

    Class names are random; half of the classes are things, and half are seen. Random masks show no
    objects, so the objectness threshold is set to keep :data:`KEPT` of them.

    Attributes:
        raw: the predictions that the threshold is set for.
    """

    def __init__(
        self,
        raw: RawPrediction,
        *,
        segmenter: Segmenter,
        inference: InferenceOptions,
        classes: int,
        generator: Generator,
    ) -> None:
        self.raw, self._segmenter, self._inference = raw, segmenter, inference
        device = raw.mask_logits.device
        names = torch.randn(classes, segmenter.clip.embed_dim, generator=generator)
        text = TextEmbeddings(F.normalize(names, dim=-1), torch.arange(classes), classes)
        self._text = text.to(device)
        self._seen = torch.arange(classes, device=device) % 2 == 0
        scores = self._classify(raw)
        # The class that scores best is a thing: without things there would be no instances to make.
        order = scores.class_scores[0].sum(0).argsort(descending=True)
        self._is_thing = torch.zeros(classes, dtype=torch.bool, device=device)
        self._is_thing[order[::2]] = True
        ranked = scores.objectness[0].sort(descending=True).values
        # Halfway between two masks: rounding must not decide which are kept.
        kept = min(KEPT, len(ranked) - 1)
        threshold = float(ranked[kept - 1] + ranked[kept]) / 2
        chosen = {"mask_filter": "objectness", "object_threshold": threshold}
        self._inference = inference.model_copy(update=chosen)

    @property
    def naive_gib(self) -> float:
        """Memory of :meth:`naive` in GiB: every mask and every class at the image's size."""
        height, width = self.raw.image_size
        maps = self.raw.mask_logits.shape[1] + self._text.num_classes
        return maps * height * width * torch.float32.itemsize / 2**30

    def ours(self) -> Results:
        """Results of :attr:`raw`."""
        return self.results(self.raw)

    def naive(self) -> Results:
        """The same by FC-CLIP's post-processing."""
        return self.naive_results(self.raw)

    def naive_results(self, raw: RawPrediction) -> Results:
        """One image's ``raw`` predictions by :func:`benchmarks.naive.naive_results`."""
        return naive_results(
            raw, self._classify(raw), is_thing=self._is_thing, inference=self._inference
        )

    def results(self, raw: RawPrediction) -> Results:
        """Panoptic, instance and semantic results of one image's ``raw`` predictions."""
        scores, inference = self._classify(raw), self._inference
        masks = raw.mask_logits[0]
        shared: dict[str, Any] = {"image": 0, "geometry": whole(raw.image_size)}
        ids, segments = panoptic_inference(
            masks,
            scores,
            is_thing=self._is_thing,
            mask_filter=inference.mask_filter,
            object_threshold=inference.object_threshold,
            overlap_threshold=inference.overlap_threshold,
            **shared,
        )
        instances = instance_inference(
            masks, scores, is_thing=self._is_thing, top_k=inference.instance_top_k, **shared
        )
        labels = semantic_inference(masks, scores, **shared)
        classes = torch.tensor([-1, *(segment.category for segment in segments)], device=ids.device)
        return classes[ids], labels, instances.scores

    def _classify(self, raw: RawPrediction) -> MaskScores:
        return classify_with(self._segmenter, raw, self._text, self._seen, self._inference)


def difference(ours: Results, theirs: Results) -> float:
    """Difference of two results of one image (0: equal): see :data:`DIFFERENCE`."""
    shares = [float((ours[k] != theirs[k]).float().mean()) for k in range(2)]
    # An instance that one side lacks counts as one of score 0.
    count = max(len(ours[2]), len(theirs[2]))
    found, other = (F.pad(scores, (0, count - len(scores))) for scores in (ours[2], theirs[2]))
    return max(*shares, relative_error(found, other))


def random_prediction(
    side: int, *, queries: int, embed_dim: int, generator: Generator
) -> RawPrediction:
    """Masks (1, Q, H / 4, W / 4) that are smooth blobs, and random embeddings (1, Q, E)."""
    coarse = torch.randn(1, queries, 8, 8, generator=generator)
    masks = F.interpolate(coarse, size=(side // 4, side // 4), mode="bicubic")
    ldp, clip = (
        F.normalize(torch.randn(1, queries, embed_dim, generator=generator), dim=-1)
        for _ in range(2)
    )
    return RawPrediction(
        mask_logits=8 * (masks - 0.7),
        ldp_embeddings=ldp,
        clip_embeddings=clip,
        iou=torch.rand(1, queries, generator=generator),
        padded_size=(side, side),
        image_size=(side, side),
    )


class AfterPixelDecoder(RegionDecoder):
    """Mask2Former's mask decoder on given outputs of its pixel decoder.

    The pixel decoder, which it leaves out, does not depend on the number of queries.
    """

    def __init__(self, decoder: Mask2FormerDecoder, decoded: Any) -> None:
        """``decoded``: what :class:`~possam.model.pixel_decoder.PixelDecoder` returned."""
        super().__init__()
        self.mask_decoder = decoder.mask_decoder
        self.mask_channels = decoder.mask_channels
        self._decoded = decoded

    def forward(self, backbone: Sequence[Tensor], *, all_layers: bool) -> Regions:
        mask_features, levels, shapes = self._decoded
        features, embeddings = self.mask_decoder(
            levels, mask_features, shapes=shapes, all_layers=all_layers
        )
        return Regions(mask_features, features, embeddings)
