"""Stage ``convert``: upstream layouts to the common format, then validation."""

from pathlib import Path

from possam.layout import Layout
from possam.params import Project
from possam.stages.common import role_file, role_folder, worker_count

UPSTREAM_SPLITS = {"train": "train2017", "val": "val2017"}
"""Our names of COCO's splits."""


def convert_dataset(project: Project, dataset: str, split: str, *, workers: int) -> None:
    """Convert one split of ``coco`` or ``ade20k`` and validate the result."""
    from possam.datasets.ade20k import convert_ade20k
    from possam.datasets.coco import convert_coco
    from possam.datasets.validate import validate_dataset
    from possam.errors import InputError

    layout, workers = Layout(project), worker_count(workers)
    out = layout.dataset(dataset, split)
    if dataset == "coco":
        upstream = UPSTREAM_SPLITS[split]
        annotations = role_folder(layout, "coco_panoptic") / "annotations"
        instances = role_folder(layout, "coco_instances") / "annotations"
        convert_coco(
            images=role_folder(layout, f"coco_{split}_images") / upstream,
            panoptic_json=annotations / f"panoptic_{upstream}.json",
            panoptic_png=annotations / f"panoptic_{upstream}",
            instances_json=instances / f"instances_{upstream}.json",
            class_names=role_file(layout, "coco_class_names"),
            split=split,
            out=out,
            workers=workers,
        )
    elif dataset == "ade20k":
        convert_ade20k(
            root=role_folder(layout, "ade20k") / "ADEChallengeData2016",
            instances_root=role_folder(layout, "ade20k_instances") / "annotations_instance",
            class_names=role_file(layout, "ade20k_class_names"),
            instance_classes_csv=role_file(layout, "ade20k_instance_classes"),
            split=split,
            out=out,
            workers=workers,
        )
    else:
        raise InputError(f"unknown data set {dataset!r}; valid choices: coco, ade20k")
    validate_dataset(out, workers=workers)


def convert_files(
    layout: str,
    *,
    root: Path,
    split: str,
    class_names: Path,
    instance_classes: Path,
    without_instances: bool,
    out: Path,
    workers: int,
) -> None:
    """Convert a folder that lies anywhere, in the upstream layout of COCO or ADE20K, and validate.

    COCO: ``root`` holds ``<split>/`` (images) and ``annotations/panoptic_<split>{.json,/}``, and
    ``annotations/instances_<split>.json`` if there is one. ADE20K: ``root`` is
    ``ADEChallengeData2016``; ``annotations_instance`` lies beside it unless ``without_instances``.
    """
    from possam.datasets.ade20k import convert_ade20k
    from possam.datasets.coco import convert_coco
    from possam.datasets.validate import validate_dataset

    workers = worker_count(workers)
    if layout == "coco":
        instances = root / "annotations" / f"instances_{split}.json"
        convert_coco(
            images=root / split,
            panoptic_json=root / "annotations" / f"panoptic_{split}.json",
            panoptic_png=root / "annotations" / f"panoptic_{split}",
            instances_json=instances if instances.is_file() else None,
            class_names=class_names,
            split=split,
            out=out,
            workers=workers,
        )
    else:
        convert_ade20k(
            root=root,
            instances_root=None if without_instances else root.parent / "annotations_instance",
            class_names=class_names,
            instance_classes_csv=instance_classes,
            split={"training": "train", "validation": "val"}.get(split, split),
            out=out,
            workers=workers,
        )
    report = validate_dataset(out, workers=workers)
    print(f"{out}: {report['counts']}")
