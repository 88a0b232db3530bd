"""A picture seen once and named many times: words and thresholds change without the networks."""

from dataclasses import dataclass, replace

import torch

from possam.datasets.images import resize_labels
from possam.model.options import InferenceOptions
from possam.model.resolution import ResizedImage, resize_for_test
from possam.model.segmenter import RawPrediction
from possam.pictures.model import MAX_SIZE, Loaded, Model, Picture, load_picture, make_result
from possam.pictures.photographs import shrink
from possam.pictures.result import Result
from possam.pictures.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False)
class Look:
    """What a model's networks found in one picture, before any words."""

    loaded: Loaded
    test: ResizedImage
    raw: RawPrediction


@torch.inference_mode()
def look_at(model: Model, picture: Picture, *, max_size: int = MAX_SIZE) -> Look:
    """Run the networks on a picture; arguments and errors as of ``Model.segment``."""
    loaded = load_picture(picture)
    small = torch.from_numpy(shrink(loaded.image, max_size)).permute(2, 0, 1)
    padding = model.segmenter.features.padding
    test = resize_for_test(small, model.config.inference.resolution, padding=padding)
    return Look(loaded, test, model.segmenter(test.pixels[None].to(model.device)))


@torch.inference_mode()
def decide(
    model: Model,
    look: Look,
    vocabulary: Vocabulary,
    *,
    object_threshold: float | None = None,
    overlap_threshold: float | None = None,
) -> Result:
    """Name what was seen, as ``Model.segment`` does; the networks do not run.

    Args:
        look: of this model; vocabulary: of this model.
        object_threshold, overlap_threshold: 0..1, instead of the model's own.
    """
    given = {"object_threshold": object_threshold, "overlap_threshold": overlap_threshold}
    inference = InferenceOptions.model_validate(
        model.config.inference.model_dump()
        | {name: value for name, value in given.items() if value is not None}
    )
    decider = Model(
        model.segmenter,
        model.config.model_copy(update={"inference": inference}),
        training_vocabulary=model.training_vocabulary,
    )
    scores = vocabulary.score(look.raw, model.segmenter, inference)
    part = decider.merge(look.raw, scores, 0, look.test, vocabulary)
    size = look.loaded.image.shape[:2]
    if part.ids.shape != size:
        part = replace(part, ids=resize_labels(part.ids, *size))
    return make_result(look.loaded, part, vocabulary)
