"""Stage ``predict``: own pictures, own words, any model; the library does the work."""

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from possam.datasets.class_names import read_class_index
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pictures.exports import Writers
from possam.pictures.files import fetch_asset, shipped_project
from possam.pictures.formats import FORMATS
from possam.pictures.gather import gather
from possam.pictures.load import (
    DEFAULT,
    load_model,
    load_training_free,
    load_weights,
    move,
    random_model,
)
from possam.pictures.model import Model, Size
from possam.pictures.result import Result
from possam.pictures.store import is_done, load_result, save_result
from possam.pictures.tiles import tiles
from possam.pictures.vocabulary import Vocabulary, some
from possam.pictures.words import Names, parse_words, read_words
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, sha256_file
from possam.runtime.memory import keep_freed_memory
from possam.runtime.progress import Progress, duration
from possam.runtime.reading import reading
from possam.runtime.version import __version__

VOCABULARIES = {
    "coco": "coco_class_names",
    "ade20k": "ade20k_class_names",
    "ade20k-full": "ade20k_full_class_names",
    "pascal-context": "pascal_context_459_class_names",
}
"""The assets with the benchmarks' class names."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """Where the classes come from, of which one is given, and which of them are stuff."""

    text: str | None = None
    file: Path | None = None
    vocabulary: str | None = None
    stuff: str = ""

    def classes(self) -> tuple[list[Names], list[str]]:
        """The classes, and the names that are stuff; an InputError unless exactly one is given."""
        given = [each for each in (self.text, self.file, self.vocabulary) if each is not None]
        if len(given) != 1:
            raise InputError("give one of --words, --words-file and --vocabulary")
        stuff = [name for names in parse_words(self.stuff) for name in names] if self.stuff else []
        if self.vocabulary is not None:
            return _benchmark(self.vocabulary, stuff)
        if self.file is not None:
            return read_words(self.file), stuff
        return parse_words(self.text or ""), stuff


def _benchmark(name: str, stuff: list[str]) -> tuple[list[Names], list[str]]:
    """A benchmark's class names, fetched on first use; COCO's ids above 90 are stuff."""
    if name not in VOCABULARIES:
        raise InputError(
            f"--vocabulary: unknown {name!r}; valid choices: {', '.join(VOCABULARIES)}"
        )
    classes = read_class_index(fetch_asset(VOCABULARIES[name]))
    own = [names[0] for number, names in classes.items() if name == "coco" and number > 90]
    return list(classes.values()), [*stuff, *own]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model is loaded: a checkpoint (or folder, or name), or towers only."""

    checkpoint: str | None = None
    random_init: bool = False
    training_free: bool = False
    sam: str | None = None
    scale: str | None = None

    def load(self, device: str) -> Model:
        """The model; an InputError if the options do not go together."""
        ways = {
            "--checkpoint": self.checkpoint is not None,
            "--random-init": self.random_init,
            "--training-free": self.training_free,
        }
        given = [name for name, is_given in ways.items() if is_given]
        if len(given) > 1:
            raise InputError(f"give one of {', '.join(given)}")
        towers = self.random_init or self.training_free
        if towers and self.sam is None:
            raise InputError(f"{given[0]} needs --sam: name the SAM size (b, l, h)")
        if self.sam is not None and not towers:
            raise InputError("--sam: only with --random-init or --training-free")
        if self.training_free:
            project = _project(self.scale or "paper")
            model = load_training_free(self.sam or "", project, folders=_folders(project))
        elif self.random_init:
            _warn("random weights, towers included; the segments mean nothing")
            project = _project(self.scale or "mini")
            model = random_model(self.sam or "", project, folders=_folders(project))
        elif self.checkpoint is not None and Path(self.checkpoint).is_file():
            weights = Path(self.checkpoint)
            if self.scale is None:
                model = load_weights(weights)
            else:
                project = _project(self.scale)
                model = load_weights(weights, project=project, folders=_folders(project))
        else:
            model = load_model(self.checkpoint)
            if self.checkpoint is None:
                _warn(
                    f"no --checkpoint: the shipped {DEFAULT} is used, which knows only the "
                    "synthetic world that it was trained on; for photographs: --training-free "
                    "--sam b, or a checkpoint of your own"
                )
        return move(model, device)


def _project(scale: str) -> Project:
    """A scale's parameters: those of the checkout that this is called in, else the shipped ones."""
    return Project(scale) if Path("params/scales").is_dir() else shipped_project(scale)


def _folders(project: Project) -> list[Path]:
    return [folder for folder in (Layout(project).assets,) if folder.is_dir()]


def _warn(message: str) -> None:
    print(f"possam predict: WARNING: {message}", file=sys.stderr, flush=True)


def predict(
    pictures: Sequence[str],
    *,
    words: Words,
    source: Source,
    out: Path,
    device: str,
    size: Size,
    batch_size: int,
    export: Sequence[str],
) -> int:
    """Segment pictures, and write each result into a folder below ``out``.

    A result that is there, of the same picture, words, model and size, is kept. Pictures that
    cannot be read are reported and left out, unless there is only one.

    Returns:
        1 if a picture could not be read, else 0.

    Raises:
        InputError: bad arguments, or the only picture cannot be read.
    """
    for name in export:
        if name not in FORMATS:
            raise InputError(f"--export: unknown {name!r}; valid choices: {', '.join(FORMATS)}")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must name a folder")
    # What a format lacks is reported before any picture is segmented.
    with tempfile.TemporaryDirectory() as folder, Writers(export, folder):
        pass
    files = gather(pictures, out=out)
    classes, stuff = words.classes()
    keep_freed_memory()
    model = source.load(device)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        vocabulary = model.vocabulary(classes, stuff)
    for note in notes:
        _warn(str(note.message))
    run = _Run(model, vocabulary, files, out, size, batch_size)
    run.all()
    if export:
        with Writers(export, out / "exports", root=run.root) as writers:
            for result in run.results():
                writers.add(result)
        print(f"{', '.join(export)} -> {out / 'exports'}")
    if run.faults:
        print(
            f"possam predict: {len(run.faults)} of {len(files)} pictures could not be read: "
            f"{some([str(path) for path in run.faults])}",
            file=sys.stderr,
        )
    return 1 if run.faults else 0


class _Run:
    """Pictures on their way to results, a few at a time."""

    def __init__(
        self,
        model: Model,
        vocabulary: Vocabulary,
        files: Mapping[Path, Path],
        out: Path,
        size: Size,
        batch_size: int,
    ) -> None:
        self.model, self.vocabulary, self.files, self.out = model, vocabulary, files, out
        self.size, self.batch_size = size, batch_size
        self.faults: list[Path] = []
        self.settings = hash_json(
            {
                "version": __version__,
                "model": model.config.model_dump(mode="json"),
                "classes": [each._asdict() for each in vocabulary.classes],
                "size": asdict(size),
            }
        )

    @property
    def root(self) -> Path:
        """The folder below which every picture lies."""
        return Path(os.path.commonpath([path.absolute().parent for path in self.files.values()]))

    def info(self, path: Path) -> dict[str, Any]:
        """What a result was made from; InputError if the picture cannot be read."""
        with reading(path):
            digest = sha256_file(path)
        return {"model": self.model.name, "picture": digest, "settings": self.settings}

    def fault(self, path: Path, error: InputError) -> None:
        """Report a picture that cannot be read; raise the error if it is the only one."""
        if len(self.files) == 1:
            raise error
        self.faults.append(path)
        print(f"possam predict: {error}", file=sys.stderr, flush=True)

    def all(self) -> None:
        """Segment what is not done yet, and write it.

        Pictures go through the model in the same company whatever is done already, since the last
        bits of its numbers depend on it: so a call that goes on writes the same files.
        """
        waiting: dict[Path, dict[str, Any]] = {}
        names = {path: name for name, path in self.files.items()}
        for name, path in self.files.items():
            try:
                info = self.info(path)
            except InputError as error:
                self.fault(path, error)
                continue
            if not is_done(self.out / name, info):
                waiting[path] = info
        done = len(self.files) - len(waiting) - len(self.faults)
        if done:
            print(f"{done} of {len(self.files)} pictures are done already", flush=True)
        self.announce(list(waiting))
        total, paths = len(self.files), list(names)
        with Progress(total, label="predict", unit="pictures", initial=done) as progress:
            for start in range(0, total, self.batch_size):
                together = paths[start : start + self.batch_size]
                for result in self.segment(together) if waiting.keys() & together else ():
                    path = result.path or Path()
                    if path in waiting:
                        save_result(result, self.out / names[path], waiting[path])
                        _say(result, self.out / names[path], full=total == 1)
                        progress.update()

    def segment(self, paths: Sequence[Path]) -> Iterator[Result]:
        """Results of pictures that go together, without those that cannot be read."""
        return self.model.segment_all(
            [path for path in paths if path not in self.faults],
            self.vocabulary,
            batch_size=self.batch_size,
            max_size=self.size.max_size,
            tile=self.size.tile,
            on_error=lambda path, error: self.fault(Path(str(path)), error),
        )

    def announce(self, paths: Collection[Path]) -> None:
        """Print how long the first large picture will take, before it is segmented."""
        for path in paths:
            started = time.monotonic()
            try:
                expected = self.model.expected_seconds(path, self.vocabulary, size=self.size)
            except InputError:
                return  # reported when its turn comes
            if expected is None:
                return
            count = len(tiles((expected.height, expected.width), self.size.tile or 1 << 30))
            more = f" in {count} tiles" if count > 1 else ""
            print(
                f"{path}: {expected.width} x {expected.height} pixels{more}: about "
                f"{duration(expected.seconds)} in the model (tried for "
                f"{time.monotonic() - started:.1f} s)",
                flush=True,
            )
            return

    def results(self) -> Iterator[Result]:
        """Every result, read from its folder, in the order of the pictures."""
        for name, path in self.files.items():
            if path not in self.faults:
                yield load_result(self.out / name, path)


def _say(result: Result, folder: Path, *, full: bool) -> None:
    """Print what a picture holds: each segment, or (of many pictures) one line."""
    for segment in result.segments if full else ():
        print(f"{segment.name}: score {segment.score:.3f}, {segment.area} pixels")
    nearest = ", ".join(f"{name} ({score:.3f})" for name, score in result.rejected)
    what = "" if result.segments else f"; nearest: {nearest or 'none of the words'}"
    print(f"{len(result.segments)} segments{what} -> {folder}", flush=True)
