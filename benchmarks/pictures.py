"""A folder of pictures and one's own words: by one call, by a call per picture, by hand."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.harness import Case

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from possam.model.options import ModelOptions
    from possam.pictures.model import Model
    from possam.pictures.result import Result

    Maps = list[NDArray[np.int64]]  # the class of each pixel of a picture (H, W); -1: no segment

SIZE = (640, 480)
"""Width and height of the pictures."""
_MINI, _FULL = 16, 2
"""Pictures of the small and of the full-size model, which takes seconds for each."""
_WORDS = 20


def cases() -> Iterator[Case]:
    """The shipped small model, then B of the paper's size with random weights, on the CPU."""
    from possam.params.project import Project
    from possam.pictures.load import load_model, random_model

    shipped = "possam_b_coco"
    model = load_model(shipped)
    small = Project("mini").scale.model
    yield from of_model("mini", model, small, ("--checkpoint", shipped), count=_MINI)
    paper = Project("paper")
    drawn = ("--random-init", "--sam", "b", "--scale", "paper")
    yield from of_model(
        "full_size_b", random_model("b", paper), paper.scale.model, drawn, count=_FULL
    )


def of_model(
    name: str, model: "Model", sizes: "ModelOptions", options: Sequence[str], *, count: int
) -> Iterator[Case]:
    """A folder of ``count`` pictures through ``model``, whose decoders have ``sizes``.

    Args:
        options: of ``possam predict``, which choose the same model.
    """
    import torch

    from benchmarks.naive import NaivePosSAM

    with tempfile.TemporaryDirectory() as place:
        model = letterboxed(model)
        folder = Folder(Path(place), model, draw(Path(place) / "pictures", count), words())
        shared: dict[str, Any] = {
            "items": count,
            "unit": "picture",
            "error": (difference, "share of pixels of another class"),
        }
        naive: Any = NaivePosSAM(model.segmenter, sizes, seed=None)
        with torch.inference_mode():
            yield Case(
                name=f"pictures/{name}",
                ours=folder.together,
                reference=f"segment-anything {metadata.version('segment-anything')}, open_clip "
                f"{metadata.version('open_clip_torch')}, transformers "
                f"{metadata.version('transformers')}, FC-CLIP's post-processing",
                theirs=partial(folder.by_hand, naive.eval().requires_grad_(False)),
                others={"Model.segment for each picture, words embedded anew": folder.one_by_one},
                note=f"{SIZE[0]} x {SIZE[1]}, {_WORDS} words, from files to maps of segments; both "
                "sides see squares of SAM's own size, the only ones that segment-anything's "
                "encoder takes; models are loaded before",
                **shared,
            )
            yield Case(
                name=f"pictures/{name}_command",
                ours=partial(folder.command, options),
                reference="possam predict for each picture",
                theirs=partial(folder.commands, options),
                note="in the command's own resolution, with the start of Python, the loading of "
                "the model and the writing of results; memory of processes is not seen",
                **shared,
            )


def letterboxed(model: "Model") -> "Model":
    """``model``, which sees pictures in the square that its SAM was made for."""
    from possam.model.encoders.sam import find_architecture
    from possam.pictures.model import Model

    assert model.config.sam_architecture is not None
    side = find_architecture(model.config.sam_architecture).image_size
    square = {"policy": "letterbox", "size": side, "max_size": side}
    resolution = model.config.inference.resolution.model_copy(update=square)
    inference = model.config.inference.model_copy(update={"resolution": resolution})
    config = model.config.model_copy(update={"inference": inference})
    return Model(model.segmenter, config, training_vocabulary=model.training_vocabulary)


def words() -> list[str]:
    """Names of the mini world's classes."""
    from possam.synthetic.vocabulary import domain_classes

    return [each.name for each in domain_classes("b")][:_WORDS]


def draw(folder: Path, count: int) -> list[Path]:
    """Write ``count`` scenes of the mini world, enlarged to :data:`SIZE`, as PNG files."""
    from PIL import Image

    from possam.synthetic.scenes import render_scenes

    folder.mkdir()
    files = []
    for number, scene in enumerate(render_scenes(count, domain="b", split="val", seed=5)):
        files.append(folder / f"{number:03}.png")
        Image.fromarray(scene.image).resize(SIZE, Image.Resampling.BICUBIC).save(files[-1])
    return files


def difference(ours: "Maps", theirs: "Maps") -> float:
    """Share of pixels of another class."""
    pairs = zip(ours, theirs, strict=True)
    return float(sum((a != b).mean() for a, b in pairs) / len(ours))


@dataclass(frozen=True)
class Folder:
    """Pictures, a model and words; ``place`` is a folder for results."""

    place: Path
    model: "Model"
    files: list[Path]
    words: list[str]

    def together(self) -> "Maps":
        """All pictures by one call, pictures of a size in batches."""
        vocabulary = self.model.vocabulary(self.words)
        return [_classes(result) for result in self.model.segment_all(self.files, vocabulary)]

    def one_by_one(self) -> "Maps":
        """A call for each picture, as a loop over a file's function would do it."""
        return [
            _classes(self.model.segment(file, self.model.vocabulary(self.words)))
            for file in self.files
        ]

    def by_hand(self, naive: Any) -> "Maps":
        """The naive assembly: a picture after the other, all masks at the picture's size."""
        import torch
        from torch.nn import functional as F

        from benchmarks.naive import naive_panoptic
        from possam.model.resolution import resize_for_test
        from possam.pictures.photographs import read_photograph

        inference, segmenter = self.model.config.inference, self.model.segmenter
        vocabulary = self.model.vocabulary(self.words)
        count, found = len(self.words), []
        for file in self.files:
            image = torch.from_numpy(read_photograph(file)).permute(2, 0, 1)
            test = resize_for_test(image, inference.resolution, padding=segmenter.features.padding)
            raw = naive(test.pixels[None])
            scores = vocabulary.score(raw, segmenter, inference).masks
            masks = F.interpolate(
                raw.mask_logits, size=raw.padded_size, mode="bilinear", align_corners=False
            )[..., : test.content_size[0], : test.content_size[1]]
            masks = F.interpolate(
                masks, size=test.original_size, mode="bilinear", align_corners=False
            )[0].sigmoid()
            is_thing = torch.tensor([*vocabulary.things, True])
            classes = naive_panoptic(masks, scores, is_thing=is_thing, inference=inference)
            found.append(classes.where(classes < count, -1).numpy())
        return found

    def command(self, options: Sequence[str]) -> "Maps":
        """``possam predict`` on the folder, in a process of its own."""
        return [*self._predict(self.files[0].parent, self.files, options)]

    def commands(self, options: Sequence[str]) -> "Maps":
        """The command for each picture, each in a process of its own."""
        return [next(self._predict(file, [file], options)) for file in self.files]

    def _predict(
        self, argument: Path, files: Sequence[Path], options: Sequence[str]
    ) -> "Iterator[NDArray[np.int64]]":
        from possam.pictures.store import load_result

        with tempfile.TemporaryDirectory(dir=self.place) as out:
            parts = [sys.executable, "-m", "possam", "predict", str(argument), *options]
            subprocess.run(
                [*parts, "--words", ";".join(self.words), "--out", out],
                check=True,
                capture_output=True,
            )
            for file in files:
                own = Path(out) if file == argument else Path(out) / file.name
                yield _classes(load_result(own, file))


def _classes(result: "Result") -> "NDArray[np.int64]":
    """The class of each pixel of ``result``, (H, W); -1: no segment."""
    import numpy as np

    table = np.full(len(result.segments) + 1, -1)
    for segment in result.segments:
        table[segment.id] = segment.class_index
    return table[result.id_map]
