"""A page to play with: drop a picture, type words, move thresholds, download every export.

The same file is the ``app.py`` of a public Gradio space (``requirements.txt``: ``possam[demo]``);
``possam demo`` opens it on this machine only. The page loads nothing from elsewhere, and nobody is
told that it ran.
"""

import os
import tempfile
import warnings
import zipfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from possam.pictures.exports import Writers
from possam.pictures.formats import FORMATS
from possam.pictures.load import load_model
from possam.pictures.look import Look, decide, look_at
from possam.pictures.model import Model
from possam.pictures.overlay import PALETTE
from possam.pictures.result import Result
from possam.pictures.words import parse_words
from possam.runtime.errors import InputError

_SHOWN = 1280
"""Longest side of the picture on the page, in pixels; downloads have its full size."""
_COLUMNS = {
    "segment": "18%",
    "score": "10%",
    "kind": "10%",
    "seen": "10%",
    "pixels": "12%",
    "x, y, width, height": "18%",
    "next best": "22%",
}
"""Columns of the table, with their widths; ``seen``: whether the model was trained on the class."""
_PHOTOGRAPHS = (
    ("sklearn", "datasets/images/china.jpg", "temple, pagoda; tree; sky; person; water"),
    ("sklearn", "datasets/images/flower.jpg", "flower, blossom; leaf"),
    ("skimage", "data/astronaut.png", "woman, astronaut; flag; space shuttle; helmet"),
    ("skimage", "data/coffee.png", "cup, mug; spoon; saucer; table"),
    ("skimage", "data/chelsea.png", "cat; blanket"),
    ("skimage", "data/rocket.jpg", "rocket; tower; sky"),
)
"""Photographs inside other packages, with words for them."""
_STUFF = "sky; water; grass; table"


class Example(NamedTuple):
    """A picture's file, with words for it as the page takes them."""

    picture: str
    words: str
    stuff: str


class Seen(NamedTuple):
    """What the model found in a picture, before any words; ``key`` tells pictures apart."""

    key: str
    look: Look


def example_pictures(folder: Path) -> list[Example]:
    """Two scenes of the synthetic world, drawn into ``folder``, and photographs that are there."""
    from possam.synthetic.scenes import render_scenes
    from possam.synthetic.vocabulary import CLASSES

    found = []
    for index, scene in enumerate(render_scenes(2, domain="a", split="val", seed=11)):
        path = folder / f"synthetic_{index + 1}.png"
        Image.fromarray(scene.image).save(path)
        kinds = dict.fromkeys(segment.class_index for segment in scene.segments)
        words = [CLASSES[kind].names[0] for kind in kinds]
        stuff = [CLASSES[kind].names[0] for kind in kinds if not CLASSES[kind].is_thing]
        found.append(Example(str(path), "; ".join(words), "; ".join(stuff)))
    for package, file, text in _PHOTOGRAPHS:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            if (path := Path(place) / file).is_file():
                stuff = [name for name in _STUFF.split("; ") if name in text]
                found.append(Example(str(path), text, "; ".join(stuff)))
    return found


class Page:
    """What the page's buttons do."""

    def __init__(self, model: Model, folder: Path) -> None:
        """``folder``: for the files that are offered for download."""
        self.model, self.folder = model, folder

    def look(self, picture: str | None, seen: Seen | None) -> Seen:
        """Run the networks on a picture, unless they ran on it already; the slow part."""
        if not picture:
            raise InputError("No picture: drop one on the left, or choose an example")
        stat = os.stat(picture)
        key = f"{picture} {stat.st_mtime_ns} {stat.st_size}"
        if seen is not None and seen.key == key:
            return seen
        return Seen(key, look_at(self.model, Path(picture)))

    def decide(
        self, seen: Seen, words: str, stuff: str, objectness: float, overlap: float
    ) -> tuple[Result, list[str]]:
        """Name what was seen, without the towers; also returns what a user should know."""
        if not words.strip():
            raise InputError("No words: type some, such as: cat; dog, puppy; grass")
        uncounted = parse_words(stuff) if stuff.strip() else []
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always", UserWarning)
            vocabulary = self.model.vocabulary(
                parse_words(words), stuff=[name for names in uncounted for name in names]
            )
        result = decide(
            self.model,
            seen.look,
            vocabulary,
            object_threshold=objectness,
            overlap_threshold=overlap,
        )
        return result, [str(note.message) for note in notes]

    def downloads(self, result: Result) -> list[str]:
        """Every export of a result, folders as archives, and the overlay."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with Writers(list(FORMATS), folder) as writers:
            writers.add(result)
        overlay = folder / "overlay.png"
        result.overlay().save(overlay)
        files = [overlay]
        for made in sorted(folder.iterdir()):
            if made.is_dir():
                archive = folder / f"{made.name}.zip"
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
                    for path in sorted(made.rglob("*")):
                        stream.write(path, path.relative_to(made))
                files.append(archive)
            elif made != overlay:
                files.append(made)
        return [str(path) for path in files]


def annotations(result: Result) -> tuple[Any, dict[str, str]]:
    """A result as Gradio's annotated picture, and the colour of each label.

    Things of one class are numbered; labels are the page's own text, of any script.
    """
    step = max(1, -(-max(result.id_map.shape) // _SHOWN))
    image = np.ascontiguousarray(result.image[::step, ::step])
    ids = result.id_map[::step, ::step]
    several = Counter(segment.name for segment in result.segments)
    count, labels, colours = Counter[str](), list[tuple[NDArray[np.bool_], str]](), dict[str, str]()
    for segment in result.segments:
        count[segment.name] += 1
        number = f" {count[segment.name]}" if several[segment.name] > 1 else ""
        label = f"{segment.name}{number}"
        colours[label] = "#{:02x}{:02x}{:02x}".format(*PALETTE[len(colours) % len(PALETTE)])
        labels.append((ids == segment.id, label))
    return (image, labels), colours


def rows(result: Result) -> list[list[Any]]:
    """A line per segment, in the order of ``_COLUMNS``."""
    known = {True: "yes", False: "no", None: ""}
    return [
        [
            segment.name,
            round(segment.score, 3),
            "thing" if segment.is_thing else "stuff",
            known[segment.seen],
            segment.area,
            ", ".join(map(str, segment.box)),
            ", ".join(f"{name} {score:.2f}" for name, score in segment.alternatives[:2]),
        ]
        for segment in result.segments
    ]


def summary(result: Result, notes: list[str]) -> str:
    """The line below the picture: how much was found, what nearly was, and warnings."""
    count = len(result.segments)
    lines = [f"{count} segment{'' if count == 1 else 's'}."]
    if result.rejected:
        near = ", ".join(f"{name} {score:.2f}" for name, score in result.rejected)
        lines.append(f"Not kept, best score of each: {near}.")
    return "\n\n".join([*lines, *(f"**Note:** {note}" for note in notes)])


def build(model: Model, folder: Path) -> Any:
    """The page as Gradio's ``Blocks``; ``folder``: for examples and downloads."""
    # Read when Gradio is imported: no message to its makers, which would need the network.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    page, inference = Page(model, folder), model.config.inference
    title = f"PosSAM: {model.name}"
    about = "Panoptic segmentation with your own words: `;` separates classes, `,` synonyms."
    if model.config.synthetic:
        about += " **This model knows only a synthetic world: coloured shapes, no photographs.**"

    def show(result: Result, notes: list[str]) -> tuple[Any, ...]:
        value, colours = annotations(result)
        picture = gr.AnnotatedImage(value=value, color_map=colours)
        return picture, rows(result), summary(result, notes), result, None

    def run(
        picture: str | None, words: str, stuff: str, one: float, two: float, seen: Seen | None
    ) -> tuple[Any, ...]:
        try:
            seen = page.look(picture, seen)
            return (seen, *show(*page.decide(seen, words, stuff, one, two)))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def move(words: str, stuff: str, one: float, two: float, seen: Seen | None) -> tuple[Any, ...]:
        if seen is None:
            return (gr.skip(),) * 5
        try:
            return show(*page.decide(seen, words, stuff, one, two))
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def download(result: Result | None) -> list[str]:
        try:
            if result is None:
                raise InputError("Nothing to download yet: segment a picture first")
            return page.downloads(result)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as blocks:
        gr.Markdown(f"# {title}\n{about}")
        seen, result = gr.State(time_to_live=3600), gr.State(time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=2):
                picture = gr.Image(
                    type="filepath", sources=["upload", "clipboard"], label="Picture", height=320
                )
                words = gr.Textbox(label="Words", placeholder="cat; dog, puppy; grass", lines=2)
                stuff = gr.Textbox(label="Stuff (which of them cannot be counted)")
                start = gr.Button("Segment", variant="primary")
                one = gr.Slider(
                    0, 1, inference.object_threshold, step=0.01, label="Least confidence of a mask"
                )
                two = gr.Slider(
                    0,
                    1,
                    inference.overlap_threshold,
                    step=0.01,
                    label="Least visible share of a mask",
                )
            with gr.Column(scale=3):
                found = gr.AnnotatedImage(label="Segments (point at a name)", height=480)
                text = gr.Markdown()
                table = gr.Dataframe(
                    headers=list(_COLUMNS),
                    column_widths=list(_COLUMNS.values()),
                    interactive=False,
                    wrap=True,
                )
                fetch = gr.Button("Prepare downloads")
                files = gr.Files(label="Downloads", interactive=False)
        gr.Examples(
            [list(example) for example in example_pictures(folder)], [picture, words, stuff]
        )
        shown = [found, table, text, result, files]
        asked = [words, stuff, one, two]
        gr.on(
            [start.click, words.submit, stuff.submit],
            run,
            [picture, *asked, seen],
            [seen, *shown],
            concurrency_limit=1,
        )
        gr.on([one.release, two.release], move, [*asked, seen], shown)
        fetch.click(download, result, files)
    return blocks


def serve(source: str | None, *, port: int, device: str = "cpu", host: str = "127.0.0.1") -> None:
    """Open the page and wait until it is interrupted.

    Raises:
        InputError: Gradio is not installed, the model cannot be loaded, or the port is in use.
    """
    if find_spec("gradio") is None:
        raise InputError("the page needs Gradio, which is missing; pip install 'possam[demo]'")
    with tempfile.TemporaryDirectory(prefix="possam-demo-") as folder:
        blocks = build(load_model(source, device=device), Path(folder))
        print(f"http://{host}:{port}  (Ctrl-C ends it)", flush=True)
        try:
            blocks.launch(
                server_name=host,
                server_port=port,
                quiet=True,
                share=False,
                footer_links=[],
                allowed_paths=[folder],
                ssr_mode=False,
            )
        except OSError as error:
            raise InputError(
                f"port {port}: in use, or not yours to open; choose another with --port"
            ) from error


if __name__ == "__main__":  # a public space says by its environment where it listens
    serve(
        os.environ.get("POSSAM_MODEL"),
        port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"),
    )
