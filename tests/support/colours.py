"""A segmenter that finds colours, so that results can be stated by hand."""

from collections.abc import Sequence
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


class Letters:
    """A tokenizer with one token per letter."""

    context_length = 40

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))


class ColourClip(nn.Module):
    """Knows the words of three colours; every other word is a direction of its own."""

    logit_scale = 20.0
    tokenizer = Letters()

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
        self.features = SimpleNamespace(padding=(124, 116, 104))

    @staticmethod
    def _class_logits(embeddings: Tensor, text: TextEmbeddings) -> Tensor:
        logits = 20 * text.similarity(embeddings)
        # A query that has no pixels has a zero embedding: nothing exceeds the void class.
        return torch.cat([logits, torch.full_like(logits[..., :1], 5.0)], -1)

    def forward(self, images: Tensor) -> RawPrediction:
        height, width = images.shape[-2:]
        upper = (torch.arange(height)[:, None] < height // 2).expand(height, width)
        masks, vectors = [], []
        for image in images:
            is_colour = [image.argmax(0) == channel for channel in range(3)]
            own = [colour & part for colour in is_colour for part in (upper, ~upper)]
            masks.append(torch.stack([torch.where(mask, 9.0, -9.0) for mask in own]))
            rows = [torch.eye(4)[k // 2] * bool(mask.any()) for k, mask in enumerate(own)]
            vectors.append(torch.stack(rows))
        return RawPrediction(
            mask_logits=torch.stack(masks),
            ldp_embeddings=torch.stack(vectors),
            clip_embeddings=torch.stack(vectors),
            iou=torch.full((len(images), 6), 0.9),
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
