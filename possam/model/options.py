"""Choices of the network and of inference: their names, ranges and meaning, written once."""

from typing import Literal

from pydantic import model_validator

from possam.runtime.options import Count, Options, Positive, Unit

CLIP = "clip"
"""Name of a feature tower beside the SAM sizes: the stages of CLIP, its dense map the last."""


class ModelOptions(Options):
    """Widths and choices of the trainable part (paper, sections 3.3 and 3.4).

    ``backbone: clip`` makes masks from the stages of CLIP alone, as FC-CLIP does. ``two_way`` is
    SAM's decoder: it reads SAM's one map, without pyramid and pixel decoder.
    """

    backbone: Literal["sam", "clip"]
    hidden_dim: Positive
    queries: Positive
    heads: Positive
    pyramid: Literal["fpn", "resample", "stages"] | None
    pixel_encoder_layers: Count
    pixel_encoder_ffn: Positive
    deformable_points: Positive
    decoder: Literal["mask2former", "two_way"]
    decoder_layers: Positive
    decoder_ffn: Positive
    pooling: Literal["ldp", "cross_attention", "region", "clip"]
    pooling_dim: Positive
    pooling_heads: Positive
    pooling_interaction: Literal["mask", "image"]
    region_features: Literal["mask_features", "neck", "queries"]
    iou_head: bool

    @property
    def modules(self) -> tuple[str, ...]:
        """Dotted modules of the parts that these options choose: they count in a run's identity."""
        return ()

    @model_validator(mode="after")
    def _divisible(self) -> "ModelOptions":
        if self.hidden_dim % self.heads or self.hidden_dim % 4:
            raise ValueError(f"hidden_dim {self.hidden_dim} must be a multiple of heads and of 4")
        if self.pooling_dim % self.pooling_heads:
            raise ValueError(f"pooling_dim {self.pooling_dim} must be a multiple of pooling_heads")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelOptions":
        """Every choice is read: a part that is not there has no choices."""
        pyramids: tuple[str | None, ...] = ("fpn", "resample")
        if self.decoder == "two_way":
            if self.backbone != "sam":
                raise ValueError("decoder: two_way reads SAM's one map; set backbone: sam")
            if self.pixel_encoder_layers:
                raise ValueError(
                    "decoder: two_way has no pixel decoder; set pixel_encoder_layers: 0"
                )
            if self.hidden_dim % (2 * self.heads) or self.hidden_dim % 8:
                raise ValueError("decoder: two_way needs hidden_dim a multiple of 2 heads and of 8")
            pyramids = (None,)
        elif self.backbone == "clip":
            pyramids = ("stages",)
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
        return self


class ResolutionOptions(Options):
    """Test resolution in pixels: ``shortest_edge`` is ``size``, the longer at most ``max_size``."""

    policy: Literal["shortest_edge", "letterbox", "native"]
    size: Positive
    max_size: Positive


class InferenceOptions(Options):
    """Ensembling (paper, section 3.5) and panoptic merging (Mask2Former, FC-CLIP)."""

    ensemble: Literal["mase", "geometric", "ldp", "clip"]
    alpha: Unit
    beta: Unit
    mase_confidence: Literal["class", "mask"]
    iou_weighting: bool
    object_threshold: Unit
    overlap_threshold: Unit
    instance_top_k: Positive
    resolution: ResolutionOptions


class AutomaticMaskOptions(Options):
    """SAM's automatic masks (figures): its point grid and thresholds on IoU, stability, overlap."""

    points_per_side: Positive
    iou_threshold: Unit
    stability_threshold: Unit
    nms_threshold: Unit
