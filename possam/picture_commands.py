"""The commands for own pictures: only arguments are handled here."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from possam.arguments import Device, Scale, Seed, load_project, scales
from possam.runtime.errors import InputError

_PREDICT = 'possam predict photos/ --words "cat; dog, puppy; grass" --stuff grass --out out'


def register(command: Callable[[str], Callable[[Callable[..., Any]], Any]]) -> None:
    """Add the commands to the command line; ``command`` makes one, with the help's example."""
    command(_PREDICT)(predict)
    command("possam export possam_h_coco out/possam_h --scale mini")(export)
    command("possam demo --port 7860")(demo)


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
    onnx: Annotated[
        bool, Option("--onnx", help="Instead, ONNX graphs for other runtimes (extra: onnx).")
    ] = False,
    words: Annotated[str, Option(help="With --onnx: also embed these, as for predict.")] = "",
    stuff: Annotated[str, Option(help='Which of the words are stuff: "road; sky".')] = "",
) -> None:
    """Write a trained run as a folder that possam.load takes, ready for a model hub."""
    from possam.stages.export import export_graphs, export_model

    if not onnx and (words or stuff):
        raise InputError("--words, --stuff: only with --onnx; an exported model takes any words")
    if onnx and without_towers:
        raise InputError("--without-towers: not with --onnx, whose graphs hold the towers")
    if onnx:
        export_graphs(load_project(scale), run, out, seed=seed, words=words, stuff=stuff)
    else:
        export_model(load_project(scale), run, out, seed=seed, without_towers=without_towers)


def demo(
    model: Annotated[
        str | None, Option(help="Weights, folder or name of a model (default: the shipped one).")
    ] = None,
    port: int = 7860,
    device: Device = "cpu",
) -> None:
    """Open a page to try words on pictures, on this machine only (extra: demo)."""
    from possam.pictures.demo import serve

    serve(model, port=port, device=device)
