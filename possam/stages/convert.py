"""Stage ``convert``: upstream layouts to the common format, with validation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from possam.datasets.catalogue import FolderLayout, datasets, find_dataset, module_of
from possam.datasets.records import Source
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pipeline.codehash import code_hash
from possam.runtime.errors import InputError
from possam.stages.common import asset_path, worker_count


def convert_dataset(project: Project, dataset: str, split: str, *, workers: int) -> None:
    """Convert one split of a data set and validate the result."""
    layout = Layout(project)
    declared = find_dataset(dataset, split)
    assets = project.dataset_assets(dataset, split)
    parts = {part: asset_path(layout, asset) for part, asset in assets.items()}
    out = layout.dataset(dataset, split)
    try:
        _convert_checked(declared.read(parts, split), dataset, split, out=out, workers=workers)
    except InputError as error:
        if not parts:
            raise
        folders = ", ".join(str(path) for path in parts.values())
        raise InputError(
            f"{error}\n{dataset} {split} is made of {folders}; if a file of it is damaged, remove "
            f"what holds it and run possam download {' '.join(sorted(set(assets.values())))} "
            f"--scale {project.name}"
        ) from error


def convert_files(
    layout: str,
    *,
    root: Path | None,
    split: str | None,
    parts: Mapping[str, Path],
    class_names: Path | None,
    class_table: Path | None,
    without_instances: bool,
    allow_empty: bool,
    out: Path,
    workers: int,
) -> None:
    """Convert a user's folder in the layout of a data set, and validate the result.

    The ``folder`` in the data set's declaration says what ``root``, ``split`` and the options mean.
    Instead of ``root`` its files and folders may be named one by one, in ``parts``.
    ``allow_empty``: most images may be without segments.

    Raises:
        InputError: an option that the layout does not have, or bad input.
    """
    layouts = {name: found for name, one in datasets().items() if (found := one.folder)}
    if layout not in layouts:
        raise InputError(f"unknown layout {layout!r}; valid choices: {', '.join(layouts)}")
    own = layouts[layout]
    options: dict[str, Any] = {"class_table": class_table, "without_instances": without_instances}
    for option, value in options.items():
        having = [name for name, one in layouts.items() if getattr(one, option)]
        if value and layout not in having:
            flag = option.replace("_", "-")
            raise InputError(f"--{flag}: only for {', '.join(having)}, not {layout}")
    options["class_table"] = class_table or own.class_table
    options = {option: value for option, value in options.items() if getattr(own, option)}
    if class_names is None and not own.names_classes:
        raise InputError(f"--class-names: {layout} needs a class-name file; give one")
    if root is not None:
        if parts:
            raise InputError(f"{_flag(next(iter(parts)))}: not together with the folder {root}")
        if split is None:
            raise InputError(f"--split: name the split, for example {next(iter(own.splits))}")
        split = own.splits.get(split, split)
        source = own.read(root, split, class_names=class_names, **options)
    else:
        _check_parts(layout, own, parts)
        if own.read_parts is None:
            raise InputError(f"{layout}: name the folder; {own.root}")
        split = split or "val"
        source = own.read_parts(class_names=class_names, **parts)
    report = _convert_checked(
        source, layout, split, out=out, workers=workers, allow_empty=allow_empty
    )
    print(f"{out}: {report['counts']}")


def _check_parts(layout: str, own: FolderLayout, parts: Mapping[str, Path]) -> None:
    """Raise an InputError unless the layout has all ``parts``, and all that it needs are there."""
    if strange := [part for part in parts if part not in own.parts]:
        raise InputError(f"{_flag(strange[0])}: {layout} has no such part; {own.root}")
    if lacking := [part for part, needed in own.parts.items() if needed and part not in parts]:
        raise InputError(f"{_flag(lacking[0])}: give it, or the folder that holds everything")


def _flag(part: str) -> str:
    return f"--{part.replace('_', '-')}"


def _convert_checked(
    source: Source,
    dataset: str,
    split: str,
    *,
    out: Path,
    workers: int,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """Convert to ``out``, which only a valid result replaces. Returns the validator's report.

    A refused result is kept beside ``out`` and assembled again by the next call; only the images
    whose files changed are converted again, or all if the code that converts them changed.
    """
    from possam.datasets.conversion import convert
    from possam.datasets.validate import validate_dataset
    from possam.datasets.warts import describe_warts

    count, report = worker_count(workers), dict[str, Any]()

    def check(folder: Path) -> None:
        faults = datasets()[dataset].faults
        report.update(validate_dataset(folder, workers=count, more=faults, allow_empty=allow_empty))

    code = code_hash(module_of(dataset), "possam.datasets.conversion")
    manifest = convert(
        source, name=dataset, split=split, out=out, workers=count, code=code, check=check
    )
    for line in describe_warts(manifest["warts"]):
        print(f"{dataset} {split}: {line}", flush=True)
    return report
