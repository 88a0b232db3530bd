"""The commands ``score`` and ``convert-files``: only arguments are handled here."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from possam.arguments import AllowEmpty, Dataset, Scale, WithoutInstances, Workers, load_project


def score(
    dataset: Annotated[Path, Argument(help="Folder of a converted data set.")],
    predictions: Annotated[
        Path, Argument(help="COCO panoptic or instance JSON, or a folder of label PNGs or .pt.")
    ],
    scale: Scale,
    segmentations: Annotated[Path | None, Option(help="The JSON's PNGs, if elsewhere.")] = None,
    subset: Annotated[bool, Option("--subset", help="Only images that were predicted.")] = False,
    out: Annotated[Path | None, Option(help="Folder for evaluation.json, statistics.")] = None,
    category_ids: Annotated[str, Option(help="contiguous or upstream class ids.")] = "contiguous",
    workers: Annotated[int | None, Option(help="Processes (default: one per core).")] = None,
) -> None:
    """Score predictions of any system against a converted data set."""
    from possam.stages.score import score_predictions

    score_predictions(
        load_project(scale),
        dataset,
        predictions,
        segmentations=segmentations,
        subset=subset,
        out=out,
        category_ids=category_ids,
        workers=workers,
    )


def convert_files(
    layout: Dataset,
    out: Annotated[Path, Option(help="Folder of the converted data set.")],
    root: Annotated[
        Path | None, Argument(help="ADEChallengeData2016, ADE20K_2021_17_01, VOC2010, ...")
    ] = None,
    split: Annotated[str | None, Option(help="Upstream's name: val2017, validation, ...")] = None,
    images: Annotated[Path | None, Option(help="coco, without ROOT: the photographs.")] = None,
    panoptic_json: Annotated[Path | None, Option(help="Likewise.")] = None,
    panoptic_png: Annotated[Path | None, Option(help="Likewise (default: beside it).")] = None,
    instances_json: Annotated[Path | None, Option(help="Likewise, if there is one.")] = None,
    class_names: Annotated[
        Path | None, Option(help="File of class names with synonyms (coco: default: the JSON's).")
    ] = None,
    class_table: Annotated[Path | None, Option(help="ade20k: instead of params/facts.")] = None,
    without_instances: WithoutInstances = False,
    allow_empty: AllowEmpty = False,
    workers: Workers = 1,
) -> None:
    """Convert any folder in the upstream layout of one of the data sets."""
    from possam.stages.convert import convert_files

    parts = {
        "images": images,
        "panoptic_json": panoptic_json,
        "panoptic_png": panoptic_png,
        "instances_json": instances_json,
    }
    convert_files(
        layout,
        root=root,
        split=split,
        parts={name: path for name, path in parts.items() if path is not None},
        class_names=class_names,
        class_table=class_table,
        without_instances=without_instances,
        allow_empty=allow_empty,
        out=out,
        workers=workers,
    )
