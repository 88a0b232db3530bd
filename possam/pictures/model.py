"""A loaded model: pictures and words in, results out.

Shapes: B pictures of one size, Q queries, K classes, H W of a picture.
"""

import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from possam.datasets.images import resize_labels
from possam.datasets.label_runs import segment_table
from possam.evaluation.words import WordScores
from possam.model.encoders.text import TextEmbeddings, embed_vocabulary
from possam.model.inference import Geometry, panoptic_inference
from possam.model.resolution import ResizedImage, resize_for_test
from possam.model.segmenter import RawPrediction, Segmenter
from possam.pictures.config import ModelConfig
from possam.pictures.photographs import read_photograph, shrink, upright
from possam.pictures.result import Box, Result, Segment
from possam.pictures.tiles import Found, Part, join, tiles
from possam.pictures.vocabulary import Embed, Vocabulary, make_vocabulary
from possam.pictures.words import Names
from possam.runtime.errors import InputError

Picture = Path | str | Image.Image | NDArray[np.uint8]
"""A file, a Pillow image, or RGB (H, W, 3) uint8."""

MAX_SIZE = 2048
"""Default of the longer side, in pixels, at which masks are made."""

_SHOWN = 5
"""Names beside the best that are given with their scores."""
_LARGE = 4_000_000
"""Pixels from which on the time of a picture is worth an estimate."""

_BATCH_PIXELS = 16_000_000
"""Pixels of the pictures that are read ahead for a batch: memory does not grow with their size."""


@dataclass(frozen=True)
class Size:
    """How large pictures are taken.

    ``max_size``: masks are made at a longer side of at most so many pixels, and enlarged to the
    picture. ``tile``: a picture with a longer side is cut into overlapping squares of this side,
    each seen by the model at its full resolution; 0: never. A tile is reduced to ``max_size`` too.
    """

    max_size: int = MAX_SIZE
    tile: int = 0

    def __post_init__(self) -> None:
        if self.max_size < 1 or self.tile < 0 or 0 < self.tile < 64:
            raise InputError(
                f"max_size {self.max_size}, tile {self.tile}: max_size is at least 1, tile at "
                "least 64 pixels, or 0 for none"
            )


class Expected(NamedTuple):
    """A picture's size, and the time that it will take."""

    height: int
    width: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Loaded:
    """A picture that was read: ``image`` RGB (H, W, 3) uint8, ``path`` of its file, if any."""

    image: NDArray[np.uint8]
    path: Path | None


class Model:
    """A segmenter with everything that inference needs.

    Attributes:
        config: what the model's folder says; training_vocabulary: the classes that it was trained
            on, empty for a model that was trained on none.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        config: ModelConfig,
        *,
        training_vocabulary: Sequence[Names] = (),
        embed: Embed | None = None,
    ) -> None:
        """``embed``: instead of the segmenter's CLIP, for example from a cache on disk."""
        self.segmenter, self.config = segmenter.eval(), config
        self.training_vocabulary = tuple(map(tuple, training_vocabulary))
        self._embed_names = embed
        self._background: TextEmbeddings | None = None

    @property
    def name(self) -> str:
        """The name in the model's folder."""
        return self.config.name

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.segmenter.parameters()).device

    def _embed(self, words: Sequence[Names]) -> TextEmbeddings:
        if self._embed_names is not None:
            return self._embed_names(words).to(self.device)
        clip, templates = self.segmenter.clip, self.config.templates
        return embed_vocabulary(clip, words, templates=templates).to(self.device)

    def vocabulary(
        self, classes: Sequence[str | Sequence[str]], stuff: Collection[str] = ()
    ) -> Vocabulary:
        """Embed the classes to look for, once for any number of pictures.

        Names that are too long for CLIP, and names of several classes, are a ``UserWarning``.

        Args:
            classes: each a name, or a list of synonyms.
            stuff: names of the classes without countable objects, such as grass and sky.

        Raises:
            InputError: no class, a blank name, or a name in ``stuff`` that no class has.
        """
        if self.training_vocabulary and self._background is None:
            self._background = self._embed(self.training_vocabulary)
        vocabulary = make_vocabulary(
            classes,
            stuff=stuff,
            background=self.training_vocabulary,
            background_text=self._background,
            segmenter=self.segmenter,
            embed=self._embed,
            templates=self.config.templates,
        )
        for note in vocabulary.notes:
            warnings.warn(note, stacklevel=2)
        return vocabulary

    def segment(
        self, picture: Picture, vocabulary: Vocabulary, *, max_size: int = MAX_SIZE, tile: int = 0
    ) -> Result:
        """Segment one picture.

        Args:
            picture: a file of any mode, turned upright as its EXIF data says; a Pillow image; or
                RGB (H, W, 3) uint8.
            vocabulary: of this model.
            max_size, tile: for large pictures, see :class:`Size`.

        Raises:
            InputError: an unreadable picture, or one of more than 250 megapixels.
        """
        return next(self.segment_all([picture], vocabulary, max_size=max_size, tile=tile))

    def segment_all(
        self,
        pictures: Iterable[Picture],
        vocabulary: Vocabulary,
        *,
        batch_size: int = 8,
        max_size: int = MAX_SIZE,
        tile: int = 0,
        on_error: Callable[[Picture, InputError], object] | None = None,
    ) -> Iterator[Result]:
        """Segment pictures in their order, as they come; arguments as of :meth:`segment`.

        Args:
            batch_size: at most so many pictures of one size go through the model together.
            on_error: called with each picture that cannot be read, which is then left out;
                without it, the error ends the iteration.
        """
        if batch_size < 1:
            raise InputError(f"batch_size: {batch_size}: at least 1 is needed")
        size, waiting = Size(max_size, tile), list[Loaded]()
        for picture in pictures:
            try:
                waiting.append(load_picture(picture))
            except InputError as error:
                if on_error is None:
                    raise
                on_error(picture, error)
                continue
            pixels = sum(each.image.size // 3 for each in waiting)
            if len(waiting) == batch_size or pixels >= _BATCH_PIXELS:
                yield from self._segment(waiting, vocabulary, size)
                waiting = []
        yield from self._segment(waiting, vocabulary, size)

    def expected_seconds(
        self, picture: Picture, vocabulary: Vocabulary, *, size: Size
    ) -> "Expected | None":
        """How long the model will take for a large picture, without the writing of files.

        Tried on the first tile; of a picture in one piece, on a sixteenth and a sixty-fourth of its
        pixels, between which the time is taken to grow evenly. ``None`` for a picture of less than
        four megapixels in one piece; errors as of :meth:`segment`.
        """
        image = load_picture(picture).image
        height, width = image.shape[:2]
        places = tiles((height, width), size.tile or max(height, width))
        if height * width < _LARGE and len(places) == 1:
            return None
        first = image[places[0]]
        self._try(first, 8, vocabulary, size)  # compiles and warms up
        if len(places) > 1:
            return Expected(height, width, len(places) * self._try(first, 1, vocabulary, size))
        small, large = (self._try(first, by, vocabulary, size) for by in (8, 4))
        slope = max(0.0, large - small) / (1 / 16 - 1 / 64)
        return Expected(height, width, large + slope * (1 - 1 / 16))

    def _try(self, image: NDArray[np.uint8], by: int, vocabulary: Vocabulary, size: Size) -> float:
        """Seconds for ``image``, its sides and those of the towers' input divided by ``by``."""
        own = self.config.inference.resolution
        sides = {"size": max(1, own.size // by), "max_size": max(1, own.max_size // by)}
        resolution = own.model_copy(update=sides)
        inference = self.config.inference.model_copy(update={"resolution": resolution})
        config = self.config.model_copy(update={"inference": inference})
        pilot = Model(self.segmenter, config, training_vocabulary=self.training_vocabulary)
        small = shrink(image, max(1, min(size.max_size, max(image.shape[:2])) // by))
        started = time.perf_counter()
        pilot._parts([small], vocabulary, Size(size.max_size))
        return time.perf_counter() - started

    def _segment(
        self, loaded: Sequence[Loaded], vocabulary: Vocabulary, size: Size
    ) -> Iterator[Result]:
        for tiled, group in groupby(loaded, lambda one: 0 < size.tile < max(one.image.shape[:2])):
            own = list(group)
            if tiled:
                for one in own:
                    yield self._tiled(one, vocabulary, size)
            else:
                parts = self._parts([one.image for one in own], vocabulary, size)
                for one, part in zip(own, parts, strict=True):
                    yield make_result(one, part, vocabulary)

    def _tiled(self, one: Loaded, vocabulary: Vocabulary, size: Size) -> Result:
        places = tiles(one.image.shape[:2], size.tile)
        parts = (self._parts([one.image[place]], vocabulary, size)[0] for place in places)
        whole = join(one.image.shape[:2], places, parts)
        return make_result(one, whole, vocabulary)

    @torch.inference_mode()
    def _parts(
        self, images: Sequence[NDArray[np.uint8]], vocabulary: Vocabulary, size: Size
    ) -> list[Part]:
        """Segments of images (H, W, 3); those of one size at test resolution go in one batch."""
        resolution = self.config.inference.resolution
        tests: list[ResizedImage] = []
        for image in images:
            small = torch.from_numpy(shrink(image, size.max_size)).permute(2, 0, 1)
            padding = self.segmenter.features.padding
            tests.append(resize_for_test(small, resolution, padding=padding))
        order = sorted(range(len(images)), key=lambda k: tests[k].pixels.shape)
        parts: list[Part | None] = [None] * len(images)
        for _, positions in groupby(order, key=lambda k: tests[k].pixels.shape):
            own = list(positions)
            raw = self.segmenter(torch.stack([tests[k].pixels for k in own]).to(self.device))
            scores = vocabulary.score(raw, self.segmenter, self.config.inference)
            for row, k in enumerate(own):
                part = self.merge(raw, scores, row, tests[k], vocabulary)
                ids = part.ids
                if ids.shape != images[k].shape[:2]:
                    ids = resize_labels(ids, *images[k].shape[:2])
                parts[k] = replace(part, ids=ids)
        return [part for part in parts if part is not None]

    def merge(
        self,
        raw: RawPrediction,
        scores: WordScores,
        row: int,
        test: ResizedImage,
        vocabulary: Vocabulary,
    ) -> Part:
        """The panoptic result of the picture in ``row`` of a batch, at the size of its masks."""
        geometry = Geometry(
            padded=raw.padded_size, content=test.content_size, output=test.original_size
        )
        inference, count = self.config.inference, len(vocabulary.classes)
        ids, segments = panoptic_inference(
            raw.mask_logits[row],
            scores.masks,
            image=row,
            geometry=geometry,
            is_thing=torch.tensor([*vocabulary.things, True], device=self.device),
            object_threshold=inference.object_threshold,
            overlap_threshold=inference.overlap_threshold,
            mask_filter=inference.mask_filter,
        )
        kept = [segment for segment in segments if segment.category < count]
        table = np.zeros(len(segments) + 1, np.int32)
        table[[segment.id for segment in kept]] = np.arange(1, len(kept) + 1)
        found = scores.found[row].float().cpu().numpy()
        trained = self.config.automatic_masks is None
        own = [
            Found(
                category=segment.category,
                score=segment.score,
                is_thing=segment.is_thing,
                embedding=raw.ldp_embeddings[row, segment.query].cpu().numpy() if trained else None,
                clip_embedding=raw.clip_embeddings[row, segment.query].cpu().numpy(),
                scores=_best(found[segment.query], without={segment.category}),
            )
            for segment in kept
        ]
        return Part(table[ids.cpu().numpy()], own, found.max(0))


def _best(
    scores: NDArray[np.float32], *, without: Collection[int]
) -> tuple[tuple[int, float], ...]:
    """The places and values of the five highest scores above 0, best first."""
    order = np.argsort(-scores, kind="stable")[: _SHOWN + len(without)].tolist()
    kept = [(k, float(scores[k])) for k in order if k not in without and scores[k] > 0]
    return tuple(kept[:_SHOWN])


def load_picture(picture: Picture) -> Loaded:
    """Read ``picture``, whatever it is, as upright RGB (H, W, 3) uint8; InputError if it cannot."""
    if isinstance(picture, (str, Path)):
        return Loaded(read_photograph(Path(picture)), Path(picture))
    if isinstance(picture, Image.Image):
        return Loaded(upright(picture, "picture"), None)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
        raise InputError(
            f"picture: an array of {picture.dtype} {picture.shape}; RGB (H, W, 3) uint8 is expected"
        )
    return Loaded(np.ascontiguousarray(picture), None)


def make_result(one: Loaded, part: Part, vocabulary: Vocabulary) -> Result:
    """The result of a picture; ``part.ids`` has its size."""
    shapes = {key: (area, box) for key, area, box in segment_table(part.ids)}
    names = [each.name for each in vocabulary.classes]
    segments = tuple(
        Segment(
            id=number,
            class_index=found.category,
            name=names[found.category],
            score=found.score,
            seen=None if vocabulary.seen is None else vocabulary.seen[found.category],
            is_thing=found.is_thing,
            box=Box(*shapes[number][1]),
            area=shapes[number][0],
            embedding=found.embedding,
            clip_embedding=found.clip_embedding,
            alternatives=tuple((names[k], score) for k, score in found.scores),
            id_map=part.ids,
        )
        for number, found in enumerate(part.found, start=1)
        if number in shapes
    )
    rejected = _best(part.best, without={segment.class_index for segment in segments})
    return Result(
        image=one.image,
        path=one.path,
        id_map=part.ids,
        classes=vocabulary.classes,
        segments=segments,
        rejected=tuple((names[k], score) for k, score in rejected),
    )
