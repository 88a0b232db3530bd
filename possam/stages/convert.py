"""Stage ``convert``: upstream layouts to the common format, then validation."""

import shutil
from pathlib import Path
from typing import Any

from possam.datasets.catalogue import datasets, find_dataset
from possam.datasets.records import Source
from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.common import asset_path, worker_count


def convert_dataset(project: Project, dataset: str, split: str, *, workers: int) -> None:
    """Convert one split of a data set and validate the result."""
    layout = Layout(project)
    declared = find_dataset(dataset, split)
    assets = project.dataset_assets(dataset, split)
    parts = {part: asset_path(layout, asset) for part, asset in assets.items()}
    source = declared.read(parts, split)
    _convert_checked(source, dataset, split, out=layout.dataset(dataset, split), workers=workers)


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
    """Convert a folder that lies anywhere, in the layout of a data set, and validate the result.

    Args:
        layout: name of a data set that has a ``folder`` in its declaration, which says what
            ``root``, ``split`` and the two options mean.

    Raises:
        InputError: an option that the layout does not have, or bad input.
    """
    layouts = {name: found for name, one in datasets().items() if (found := one.folder)}
    if layout not in layouts:
        raise InputError(f"unknown layout {layout!r}; valid choices: {', '.join(layouts)}")
    own, options = layouts[layout], dict[str, Any]()
    with_table = [name for name, one in layouts.items() if one.class_table is not None]
    if own.class_table is not None:
        options["class_table"] = class_table or own.class_table
    elif class_table is not None:
        raise InputError(f"--class-table: only for {', '.join(with_table)}, not {layout}")
    if own.without_instances:
        options["without_instances"] = without_instances
    elif without_instances:
        having = ", ".join(name for name, one in layouts.items() if one.without_instances)
        raise InputError(f"--without-instances: only for {having}, not {layout}")
    split = own.splits.get(split, split)
    source = own.read(root, split, class_names=class_names, **options)
    report = _convert_checked(source, layout, split, out=out, workers=workers)
    print(f"{out}: {report['counts']}")


def _convert_checked(
    source: Source, dataset: str, split: str, *, out: Path, workers: int
) -> dict[str, Any]:
    """Convert beside ``out``; a valid result takes the name. Returns the validator's report."""
    from possam.datasets.conversion import convert, publish
    from possam.datasets.validate import validate_dataset

    unchecked, count = out.with_name(f"{out.name}.unchecked"), worker_count(workers)
    convert(source, name=dataset, split=split, out=unchecked, workers=count)
    try:
        report = validate_dataset(unchecked, workers=count, more=datasets()[dataset].faults)
    except InputError:
        shutil.rmtree(unchecked)
        raise
    publish(unchecked, out)
    return report
