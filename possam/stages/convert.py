"""Stage ``convert``: upstream layouts to the common format, then validation."""

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from possam.datasets.catalogue import source
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.common import role_path, worker_count

UPSTREAM_SPLITS = {"train": "train2017", "val": "val2017"}
"""Our names of COCO's splits."""
FACTS = {
    "ade20k": Path("params/facts/ade20k_instance_classes.csv"),
    "ade20k_full": Path("params/facts/ade20k_full_classes.csv"),
}
"""Tables of classes that two layouts need."""


def convert_dataset(project: Project, dataset: str, split: str, *, workers: int) -> None:
    """Convert one split of a data set of the catalogue and validate the result."""
    layout = Layout(project)
    roles = source(dataset, split).assets(split)
    parts = {part: role_path(layout, role) for part, role in roles.items()}
    convert = partial(_CONVERTERS[dataset], parts, split=split)
    _convert_checked(convert, layout.dataset(dataset, split), worker_count(workers))


def _convert_checked(convert: Callable[..., Any], out: Path, workers: int) -> dict[str, Any]:
    """Convert beside ``out``; a valid result takes the name. Returns the validator's report."""
    from possam.datasets.conversion import publish
    from possam.datasets.validate import validate_dataset

    unchecked = out.with_name(f"{out.name}.unchecked")
    convert(out=unchecked, workers=workers)
    try:
        report = validate_dataset(unchecked, workers=workers)
    except InputError:
        shutil.rmtree(unchecked)
        raise
    publish(unchecked, out)
    return report


def _coco(parts: Mapping[str, Path], *, split: str, **common: Any) -> None:
    from possam.datasets.coco import convert_coco

    upstream = UPSTREAM_SPLITS[split]
    panoptic = parts["panoptic"] / "annotations" / f"panoptic_{upstream}"
    convert_coco(
        images=parts["images"] / upstream,
        panoptic_json=panoptic.with_suffix(".json"),
        panoptic_png=panoptic,
        instances_json=parts["instances"] / "annotations" / f"instances_{upstream}.json",
        class_names=parts["class_names"],
        split=split,
        **common,
    )


def _ade20k(parts: Mapping[str, Path], **common: Any) -> None:
    from possam.datasets.ade20k import convert_ade20k

    convert_ade20k(
        root=parts["images"] / "ADEChallengeData2016",
        instances_root=parts["instances"] / "annotations_instance",
        class_names=parts["class_names"],
        instance_classes_csv=parts["classes"],
        **common,
    )


def _ade20k_full(parts: Mapping[str, Path], **common: Any) -> None:
    from possam.datasets.ade20k_full import convert_ade20k_full

    convert_ade20k_full(
        root=parts["images"] / "ADE20K_2021_17_01",
        class_names=parts["class_names"],
        classes_csv=parts["classes"],
        **common,
    )


def _pascal_context(parts: Mapping[str, Path], **common: Any) -> None:
    from possam.datasets.pascal_context import convert_pascal_context

    convert_pascal_context(
        voc=parts["images"] / "VOCdevkit" / "VOC2010",
        labels=parts["labels"] / "trainval",
        class_names=parts["class_names"],
        **common,
    )


_CONVERTERS: Mapping[str, Callable[..., None]] = {
    "coco": _coco,
    "ade20k": _ade20k,
    "ade20k_full": _ade20k_full,
    "pascal_context_459": _pascal_context,
}


def convert_files(
    layout: str,
    *,
    root: Path,
    split: str,
    class_names: Path,
    class_table: Path | None,
    without_instances: bool,
    out: Path,
    workers: int,
) -> None:
    """Convert a folder that lies anywhere, in one of the upstream layouts, and validate.

    COCO: ``root`` holds ``<split>/`` (images) and ``annotations/panoptic_<split>{.json,/}``, and
    ``annotations/instances_<split>.json`` if there is one. ADE20K: ``root`` is
    ``ADEChallengeData2016``; ``annotations_instance`` lies beside it unless ``without_instances``.
    The full release: ``root`` is ``ADE20K_2021_17_01``. PASCAL Context: ``root`` is ``VOC2010``,
    with the label maps in ``trainval/``.

    Raises:
        InputError: an option that the layout has no use for, or bad input.
    """
    from possam.datasets.ade20k import FOLDERS, convert_ade20k
    from possam.datasets.ade20k_full import convert_ade20k_full
    from possam.datasets.coco import convert_coco
    from possam.datasets.pascal_context import convert_pascal_context

    if class_table is not None and layout not in FACTS:
        raise InputError(f"--class-table: only for the layouts {', '.join(FACTS)}, not {layout}")
    if without_instances and layout != "ade20k":
        raise InputError(f"--without-instances: only for the layout ade20k, not {layout}")
    convert: Callable[..., Any]
    if layout == "coco":
        instances = root / "annotations" / f"instances_{split}.json"
        convert = partial(
            convert_coco,
            images=root / split,
            panoptic_json=root / "annotations" / f"panoptic_{split}.json",
            panoptic_png=root / "annotations" / f"panoptic_{split}",
            instances_json=instances if instances.is_file() else None,
        )
    elif layout == "pascal_context_459":
        convert = partial(convert_pascal_context, voc=root, labels=root / "trainval")
    else:
        split = {folder: name for name, folder in FOLDERS.items()}.get(split, split)
        table = class_table or FACTS[layout]
        if layout == "ade20k_full":
            convert = partial(convert_ade20k_full, root=root, classes_csv=table)
        else:
            convert = partial(
                convert_ade20k,
                root=root,
                instances_root=None if without_instances else root.parent / "annotations_instance",
                instance_classes_csv=table,
            )
    convert = partial(convert, class_names=class_names, split=split)
    report = _convert_checked(convert, out, worker_count(workers))
    print(f"{out}: {report['counts']}")
