"""The commands for own pictures: ``predict`` and ``export``. Only arguments are handled here."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from possam.arguments import Device, Scale, Seed, load_project, scales

_PREDICT = 'possam predict photos/ --words "cat; dog, puppy; grass" --stuff grass --out out'


def register(command: Callable[[str], Callable[[Callable[..., Any]], Any]]) -> None:
    """Add the commands to the command line; ``command`` makes one, with the help's example."""
    command(_PREDICT)(predict)
    command("possam export possam_h_coco out/possam_h --scale mini")(export)


def predict(
    pictures: Annotated[list[str], Argument(help='Files, folders, patterns ("trip/*.jpg").')],
    out: Annotated[Path, Option(help="Folder of results, one folder per picture.")],
    words: Annotated[str | None, Option(help='Classes by ";", synonyms by "," ("\\,").')] = None,
    words_file: Annotated[Path | None, Option(help="Or: a file, one class per line.")] = None,
    vocabulary: Annotated[
        str | None, Option(help="Or: coco, ade20k, ade20k-full, pascal-context.")
    ] = None,
    stuff: Annotated[str, Option(help='Which of the words are stuff: "road; sky".')] = "",
    checkpoint: Annotated[
        str | None, Option(help="Weights, folder or name of a model (default: the shipped one).")
    ] = None,
    training_free: Annotated[bool, Option("--training-free", help="Or: SAM + CLIP only.")] = False,
    random_init: Annotated[bool, Option("--random-init", help="Or: random weights.")] = False,
    sam: Annotated[str | None, Option(help="With these two: the SAM size.")] = None,
    scale: Annotated[
        str | None, Option(help="Whose towers (default: the checkpoint's).", autocompletion=scales)
    ] = None,
    max_size: Annotated[int, Option(help="Longer side of masks, in pixels.")] = 2048,
    tile: Annotated[int, Option(help="Cut larger pictures into tiles of this side.")] = 0,
    batch_size: Annotated[int, Option(help="Pictures of one size that go together.")] = 8,
    export: Annotated[str, Option(help="Also write coco-panoptic,yolo,... ")] = "",
    device: Device = "cpu",
) -> int:
    """Segment your pictures with any words."""
    from possam.pictures.model import Size
    from possam.stages.predict import Source, Words, predict

    return predict(
        pictures,
        words=Words(text=words, file=words_file, vocabulary=vocabulary, stuff=stuff),
        source=Source(
            checkpoint=checkpoint,
            random_init=random_init,
            training_free=training_free,
            sam=sam,
            scale=scale,
        ),
        out=out,
        device=device,
        size=Size(max_size, tile),
        batch_size=batch_size,
        export=[name for each in export.split(",") if (name := each.strip())],
    )


def export(
    run: Annotated[str, Argument(help="In params/runs.yaml, or a weights.safetensors.")],
    out: Annotated[Path, Argument(help="New folder, or an exported one, which is replaced.")],
    scale: Scale,
    seed: Seed = None,
    without_towers: Annotated[
        bool, Option("--without-towers", help="Leave out towers that possam ships.")
    ] = False,
) -> None:
    """Write a trained run as a folder that possam.load takes, ready for a model hub."""
    from possam.stages.export import export_model

    export_model(load_project(scale), run, out, seed=seed, without_towers=without_towers)
