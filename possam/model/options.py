"""Choices of the network and of inference: their names, ranges and meaning, written once."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from possam.model.registry import DECODERS, ENSEMBLES, POOLINGS, PYRAMIDS, module_of
from possam.runtime.options import Count, Options, Positive, Unit

CLIP = "clip"
"""Name, beside those of SAMs, of the tower that gives CLIP's stages (the last: its dense map)."""

Backbone = Literal["sam", "clip"]
"""The maps that masks are made from: SAM's one, or CLIP's four stages, as in FC-CLIP."""
Interaction = Literal["mask", "image"]
"""Which tokens attend to each other in LDP: the two of one mask, or those of all masks."""
RegionFeatures = Literal["mask_features", "neck", "queries", "mask_features_and_queries"]
"""The paper's "SAM features": mask features or SAM's output inside the mask, its query's, or the
first and the last one after the other, as FC-CLIP's head reads them."""
MaskPooling = Literal["area", "resized_logits"]
"""How a mask lies on coarser features: the share of each cell that is inside, or FC-CLIP's way: the
logits are resized, and a cell is inside if its logit is positive."""
Confidence = Literal["class", "mask"]
"""What MASE compares: each class's own probability, or the mask's highest one."""
MaskFilter = Literal["best_class", "objectness"]
"""What a mask must pass to compete: its best class, or 1 - void (``inference.MaskScores.kept``)."""
ResolutionPolicy = Literal["shortest_edge", "letterbox", "native"]
Byte = Annotated[int, Field(ge=0, le=255)]
Colour = Annotated[tuple[Byte, Byte, Byte], Field(strict=False)]
"""RGB; a list, too, since the header of weights, in JSON, knows no tuples."""
Precision = Literal["fp32", "bf16"]
"""What networks compute in: float32, or bfloat16 by autocast."""
Compilation = Literal["none", "inductor", "cuda_graphs"]
"""How a network runs at test time: see ``possam.model.ops.compilation``."""


def _one_of(kinds: Mapping[str, str]) -> AfterValidator:
    """Check that ``kinds`` has a name; looked up when parameters are read, not at import."""

    def check(name: str) -> str:
        if name not in kinds:
            raise ValueError(f"unknown {name!r}; valid choices: {', '.join(kinds)}")
        return name

    return AfterValidator(check)


class ModelOptions(Options):
    """Widths and choices of the trainable part (paper, sections 3.3 and 3.4).

    ``decoder: two_way`` is SAM's: it reads SAM's one map, without pyramid and pixel decoder.
    ``padding``: the colour of what is added to crops and images, at training and at test time.
    ``initial_temperature``: cosines are divided by it; it is trained, down to CLIP's bound 0.01, at
    which it has no gradient.
    """

    padding: Colour
    backbone: Backbone
    hidden_dim: Positive
    queries: Positive
    heads: Positive
    pyramid: str | None
    pixel_encoder_layers: Count
    pixel_encoder_ffn: Positive
    deformable_points: Positive
    decoder: Annotated[str, _one_of(DECODERS)]
    decoder_layers: Positive
    decoder_ffn: Positive
    pooling: Annotated[str, _one_of(POOLINGS)]
    pooling_dim: Positive
    pooling_heads: Positive
    pooling_interaction: Interaction
    region_features: RegionFeatures
    mask_pooling: MaskPooling
    initial_temperature: Annotated[float, Field(gt=0.01, le=1.0)]
    iou_head: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted names of the modules of the chosen parts, sorted: code that the model uses."""
        found = {module_of(DECODERS, self.decoder), module_of(POOLINGS, self.pooling)}
        if self.pyramid is not None:
            found.add(module_of(PYRAMIDS[self.backbone], self.pyramid))
        return tuple(sorted(found))

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelOptions":
        """Check that heads divide their widths, and that no choice is made for a missing part."""
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of heads and of 4")
        if self.pooling_dim % self.pooling_heads:
            raise ValueError(f"pooling_dim {self.pooling_dim} must be a multiple of pooling_heads")
        pyramids: tuple[str | None, ...] = tuple(PYRAMIDS[self.backbone])
        if self.decoder == "two_way":
            if self.backbone != "sam":
                raise ValueError("decoder: two_way reads SAM's one map; set backbone: sam")
            if self.pixel_encoder_layers:
                raise ValueError(
                    "decoder: two_way has no pixel decoder; set pixel_encoder_layers: 0"
                )
            if self.hidden_dim % (2 * self.heads) or self.hidden_dim % 8:
                raise ValueError("decoder: two_way needs hidden_dim divisible by 2 * heads and 8")
            pyramids = (None,)
        if self.pyramid not in pyramids:
            valid = ", ".join("null" if name is None else name for name in pyramids)
            raise ValueError(
                f"pyramid {self.pyramid!r} does not go with backbone: {self.backbone} and decoder: "
                f"{self.decoder}; valid choices: {valid}"
            )
        if self.backbone == "clip" and self.region_features == "neck":
            raise ValueError(
                "region_features: neck is SAM's; backbone: clip has mask_features and queries"
            )
        if self.pooling == "fcclip" and (self.decoder, self.region_features) != (
            *("mask2former", "mask_features_and_queries"),
        ):
            raise ValueError(
                "pooling: fcclip is FC-CLIP's head; it needs decoder: mask2former and "
                "region_features: mask_features_and_queries"
            )
        return self


class ResolutionOptions(Options):
    """Test resolution in pixels.

    ``shortest_edge``: the shorter side becomes ``size``, or the longer one ``max_size`` where it
    would exceed that (detectron2, ODISE). ``letterbox``: the longer side becomes ``size``, and the
    image is padded to a square (SAM). ``native``: unchanged.
    """

    policy: ResolutionPolicy
    size: Positive
    max_size: Positive


class InferenceOptions(Options):
    """Ensembling (paper, section 3.5) and panoptic merging (Mask2Former, FC-CLIP)."""

    ensemble: Annotated[str, _one_of(ENSEMBLES)]
    alpha: Unit
    beta: Unit
    mase_confidence: Confidence
    iou_weighting: bool
    mask_filter: MaskFilter
    object_threshold: Unit
    overlap_threshold: Unit
    instance_top_k: Positive
    resolution: ResolutionOptions

    @property
    def modules(self) -> tuple[str, ...]:
        """The dotted name of the module of the chosen ensemble: code that inference uses."""
        return (module_of(ENSEMBLES, self.ensemble),)


class AutomaticMaskOptions(Options):
    """SAM's automatic masks (figures), from a grid of ``points_per_side`` squared points.

    ``iou_threshold``: lowest predicted IoU; ``stability_threshold``: lowest IoU between a
    mask's stricter and laxer cuts; ``nms_threshold``: highest IoU of two masks' boxes.
    """

    points_per_side: Positive
    iou_threshold: Unit
    stability_threshold: Unit
    nms_threshold: Unit
