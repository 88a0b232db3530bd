"""Every data set that the pipeline knows: one module each in ``possam/datasets/upstream``.

A module holds a ``DECLARATION``, and its file name is the data set's name. Listing the data sets
imports neither numpy nor torch: readers import what they need when they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

from possam.runtime.errors import InputError

if TYPE_CHECKING:
    from possam.datasets.format import ConvertedDataset
    from possam.datasets.records import Source

Split = Literal["train", "val"]
_PACKAGE = "possam.datasets.upstream"
OWN = "own"
"""A data set of the user's own, which ``possam convert-files`` puts where the pipeline reads it."""


@dataclass(frozen=True, kw_only=True)
class FolderLayout:
    """How ``possam convert-files`` reads a folder in the layout of a data set.

    Attributes:
        root: which folder is meant, in words.
        splits: by the publisher's name of a split, the name that ``read`` takes.
        read: takes the folder, the name of the split, the class-name file and those of the options
            ``class_table`` and ``without_instances`` that apply.
        read_parts: takes files and folders one by one, by their names, and the class-name file;
            None: they are found in ``root`` only.
        parts: the names that ``read_parts`` takes, True for those that it needs.
        names_classes: whether the class-name file may be None, as the files themselves have names.
        class_table: default of ``--class-table``; None: there is no such table.
    """

    root: str
    splits: Mapping[str, str]
    read: Callable[..., Source]
    read_parts: Callable[..., Source] | None = None
    parts: Mapping[str, bool] = field(default_factory=dict)
    names_classes: bool = False
    class_table: Path | None = None
    without_instances: bool = False


@dataclass(frozen=True, kw_only=True)
class UpstreamDataset:
    """What the pipeline knows of one data set.

    Attributes:
        images: how many images the official release has, by split. These splits are converted; a
            run can train on a data set that has ``train``.
        metrics: what its ground truth allows: ``panoptic``, ``instance``, ``semantic``.
        roles: for each part that ``read`` takes, the key in a scale's ``assets``; ``{split}`` in it
            is replaced.
        read: takes the parts' paths (files, or folders of unpacked archives) and the split.
        folder: for ``possam convert-files``; None: the layout is not offered there.
        faults: checks of this data set only; returns one message per fault.
        on_disk: for each archive or file, by its role, what ``read`` reads of it and where that
            lies below a user's root, in ``params/data.yaml``'s form. Of an archive without an entry
            everything is unpacked.
    """

    images: Mapping[str, int]
    metrics: tuple[str, ...]
    roles: Mapping[str, str]
    read: Callable[[Mapping[str, Path], str], Source]
    folder: FolderLayout | None = None
    faults: Callable[[ConvertedDataset], list[str]] | None = None
    on_disk: Mapping[str, Any] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        return tuple(self.images)

    def parts(self, split: str) -> dict[str, str]:
        """The role of each part for one split."""
        return {part: role.format(split=split) for part, role in self.roles.items()}


def one_file(path: str, *elsewhere: str) -> dict[str, Any]:
    """One file of an unpacked archive, for ``on_disk``, and where else users keep it."""
    return {"path": path, "places": [path, *elsewhere]}


def many_files(path: str, *elsewhere: str, **files: Any) -> dict[str, Any]:
    """A folder of an unpacked archive, and the files in it (``suffix``, ``exactly``, ...)."""
    return one_file(path, *elsewhere) | {"files": [files]}


def module_of(dataset: str) -> str:
    """Dotted name of the module that declares and reads ``dataset``."""
    return __name__ if dataset == OWN else f"{_PACKAGE}.{dataset}"


@cache
def datasets() -> Mapping[str, UpstreamDataset]:
    """Every data set by name, in alphabetical order; InputError if one has no declaration."""
    found: dict[str, Any] = {}
    for name in sorted(module.name for module in iter_modules(import_module(_PACKAGE).__path__)):
        found[name] = getattr(import_module(module_of(name)), "DECLARATION", None)
        if not isinstance(found[name], UpstreamDataset):
            raise InputError(
                f"{module_of(name)}: has no DECLARATION; every module in this folder is a data set "
                "(docs/add-a-dataset.md)"
            )
    return found


def _refuse_own(parts: Mapping[str, Path], split: str) -> Source:
    raise InputError(
        f"data set own, split {split}: not there yet; convert your folder: possam convert-files "
        f"coco FOLDER --split ... --class-names ... --out data/SCALE/datasets/own_{split}"
    )


_OWN = UpstreamDataset(
    images={"train": 1000, "val": 100},  # only plans read them, until the data set is there
    metrics=("panoptic", "instance", "semantic"),
    roles={},
    read=_refuse_own,
)


def declaration(dataset: str) -> UpstreamDataset | None:
    """What is declared of ``dataset``, the user's own included; None if it is unknown."""
    return _OWN if dataset == OWN else datasets().get(dataset)


def trainable() -> tuple[str, ...]:
    """Data sets that a run can train on."""
    return tuple(name for name, declared in datasets().items() if "train" in declared.splits)


def users_of_roles() -> dict[str, list[tuple[str, str]]]:
    """Every role, with the (data set, split) pairs that need it."""
    users: dict[str, list[tuple[str, str]]] = {}
    for name, declared in datasets().items():
        for split in declared.splits:
            for role in declared.parts(split).values():
                users.setdefault(role, []).append((name, split))
    return users


def find_dataset(dataset: str, split: str) -> UpstreamDataset:
    """The data set ``dataset``; InputError if it is unknown or has no ``split``."""
    found = declaration(dataset)
    if found is None:
        choices = ", ".join([*datasets(), OWN])
        raise InputError(f"unknown data set {dataset!r}; valid choices: {choices}")
    if split not in found.splits:
        raise InputError(
            f"data set {dataset!r}: no split {split!r}; valid choices: {', '.join(found.splits)}"
        )
    return found
