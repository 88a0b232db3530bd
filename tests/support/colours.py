"""A segmenter that finds colours, so that results can be stated by hand."""

from types import SimpleNamespace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from possam.model.encoders.text import TextEmbeddings
from possam.model.options import InferenceOptions, ResolutionOptions
from possam.model.segmenter import RawPrediction, Segmenter
from possam.pictures.config import FORMAT, FileParams, ModelConfig
from possam.pictures.model import Model

INFERENCE = InferenceOptions(
    ensemble="mase",
    alpha=0.4,
    beta=0.8,
    mase_confidence="class",
    iou_weighting=True,
    mask_filter="objectness",
    object_threshold=0.5,
    overlap_threshold=0.6,
    instance_top_k=10,
    resolution=ResolutionOptions(policy="native", size=64, max_size=64),
)
COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220)}


class ColourClip(nn.Module):
    """Knows the words of three colours; every other word is a direction of its own."""

    logit_scale = 20.0

    def encode_text(self, texts: list[str]) -> Tensor:
        names = [*COLOURS]
        return torch.stack([self._embed(text, names) for text in texts])

    @staticmethod
    def _embed(text: str, names: list[str]) -> Tensor:
        word = text.split()[-1]
        axis = names.index(word) if word in names else 3
        return torch.eye(4)[axis]


class ColourSegmenter(nn.Module):
    """Two queries a colour: its pixels in the upper and in the lower half of the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.clip = ColourClip()
        self.possam = SimpleNamespace(class_logits=self._class_logits)

    @staticmethod
    def _class_logits(embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        logits = 20 * text.similarity(embeddings)
        # A query that has no pixels has a zero embedding: nothing exceeds the void class.
        return torch.cat([logits, torch.full_like(logits[..., :1], 5.0)], -1)

    def forward(self, images: Tensor) -> RawPrediction:
        height, width = images.shape[-2:]
        upper = torch.arange(height)[:, None] < height // 2
        masks, embeddings = [], []
        for channel in range(3):
            is_colour = images[0].argmax(0) == channel
            for part in (upper, ~upper):
                mask = is_colour & part
                masks.append(torch.where(mask, 9.0, -9.0))
                embeddings.append(torch.eye(4)[channel] * bool(mask.any()))
        vectors = torch.stack(embeddings)[None]
        return RawPrediction(
            mask_logits=torch.stack(masks)[None],
            ldp_embeddings=vectors,
            clip_embeddings=vectors,
            iou=torch.full((1, 6), 0.9),
            padded_size=(height, width),
            image_size=(height, width),
        )


def scene(height: int = 40, width: int = 60) -> NDArray[np.uint8]:
    """Left third red, the rest blue, a green square in the upper right."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:, : width // 3] = COLOURS["red"]
    pixels[:, width // 3 :] = COLOURS["blue"]
    pixels[5:15, 45:55] = COLOURS["green"]
    return pixels


CONFIG = ModelConfig(
    format=FORMAT,
    name="colours",
    scale="mini",
    synthetic=True,
    precision="fp32",
    templates=("a photo of a {}", "{}"),
    inference=INFERENCE,
    sam_architecture=None,
    sam=None,
    clip_config="colours",
    clip=FileParams(file="none", sha256="0"),
    weights=None,
)


def colour_model(known: tuple[str, ...] = ("red",)) -> Model:
    """A model that was trained on the colours ``known``."""
    segmenter = cast(Segmenter, ColourSegmenter())
    return Model(segmenter, CONFIG, training_vocabulary=[(name,) for name in known])
