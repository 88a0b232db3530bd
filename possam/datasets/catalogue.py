"""Every data set of the pipeline: its splits, what it is made from, what can be measured on it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from possam.runtime.errors import InputError

Split = Literal["train", "val"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """One data set.

    Attributes:
        splits: those that are converted; a run can train on a data set with ``train``.
        metrics: what its ground truth allows.
        roles: for each part that the conversion reads, the key in a scale's ``assets``
            (``{split}`` stands for the split).
    """

    splits: tuple[str, ...]
    metrics: tuple[str, ...]
    roles: Mapping[str, str]

    def assets(self, split: str) -> dict[str, str]:
        """The roles for one split, by part."""
        return {part: role.format(split=split) for part, role in self.roles.items()}


DATASETS: Mapping[str, Source] = {
    "coco": Source(
        splits=("train", "val"),
        metrics=("panoptic", "instance", "semantic"),
        roles={
            "images": "coco_{split}_images",
            "panoptic": "coco_panoptic",
            "instances": "coco_instances",
            "class_names": "coco_class_names",
        },
    ),
    "ade20k": Source(
        splits=("train", "val"),
        metrics=("panoptic", "instance", "semantic"),
        roles={
            "images": "ade20k",
            "instances": "ade20k_instances",
            "class_names": "ade20k_class_names",
            "classes": "ade20k_instance_classes",
        },
    ),
    "ade20k_full": Source(
        splits=("val",),
        metrics=("semantic",),
        roles={
            "images": "ade20k_full",
            "class_names": "ade20k_full_class_names",
            "classes": "ade20k_full_classes",
        },
    ),
    "pascal_context_459": Source(
        splits=("val",),
        metrics=("semantic",),
        roles={
            "images": "pascal_voc_2010",
            "labels": "pascal_context_459",
            "class_names": "pascal_context_459_class_names",
        },
    ),
}
"""By the name that ``params/`` and the command line use."""

TRAINABLE = tuple(name for name, source in DATASETS.items() if "train" in source.splits)
"""Data sets that a run can train on."""

ROLES: Mapping[str, str] = {
    role: name
    for name, source in DATASETS.items()
    for split in source.splits
    for role in source.assets(split).values()
}
"""Every role that a scale must fill, and a data set that needs it."""


def source(dataset: str, split: str) -> Source:
    """The data set ``dataset``, which must have ``split``.

    Raises:
        InputError: no such data set, or no such split; names the valid choices.
    """
    if dataset not in DATASETS:
        raise InputError(f"unknown data set {dataset!r}; valid choices: {', '.join(DATASETS)}")
    found = DATASETS[dataset]
    if split not in found.splits:
        raise InputError(
            f"data set {dataset!r}: no split {split!r}; valid choices: {', '.join(found.splits)}"
        )
    return found


def module_of(dataset: str) -> str:
    """The module that reads ``dataset``: it counts in the identity of its conversion."""
    return f"possam.datasets.{_MODULES.get(dataset, dataset)}"


_MODULES = {"pascal_context_459": "pascal_context"}
