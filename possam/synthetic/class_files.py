"""Class-name files and tables of classes of the mini world, in the upstream shapes.

A class-name file holds one line per index, ``invalid_class_id`` where there is no class.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from possam.runtime.files import atomic_write
from possam.synthetic.annotate import (
    ade_full_indices,
    ade_indices,
    ade_instance_indices,
    coco_category_ids,
    context_indices,
)
from possam.synthetic.vocabulary import CLASSES, domain_names

COCO_NAMES = "synthetic_coco_with_prompt_eng.txt"
ADE_NAMES = "synthetic_ade20k_with_prompt_eng.txt"
ADE_INSTANCES = "synthetic_ade20k_instances.csv"
ADE_FULL_NAMES = "synthetic_ade20k_full_with_prompt_eng.txt"
ADE_FULL_CLASSES = "synthetic_ade20k_full_classes.csv"
CONTEXT_NAMES = "synthetic_pascal_context_with_prompt_eng.txt"
FILES = (COCO_NAMES, ADE_NAMES, ADE_INSTANCES, ADE_FULL_NAMES, ADE_FULL_CLASSES, CONTEXT_NAMES)
_COCO_LAST_INDEX = 200


def write_class_files(directory: Path) -> None:
    """Write :data:`FILES` into ``directory``; they depend only on the vocabulary."""
    coco = {number: domain_names("a", CLASSES[k]) for k, number in coco_category_ids().items()}
    _write_text(directory / COCO_NAMES, _name_lines(coco, last=_COCO_LAST_INDEX))
    ade = {number: domain_names("b", CLASSES[k]) for k, number in ade_indices().items()}
    _write_text(directory / ADE_NAMES, _name_lines(ade, last=len(ade)))
    things = ade_instance_indices()
    _write_table(
        directory / ADE_INSTANCES,
        ("scene_parse_index", "instance_index", "name"),
        (
            (number, things.get(k, ""), ", ".join(ade[number]))
            for k, number in ade_indices().items()
        ),
    )
    full = {k: domain_names("b", CLASSES[k]) for k in ade_full_indices()}
    numbered = dict(enumerate(full.values(), start=1))
    _write_text(directory / ADE_FULL_NAMES, _name_lines(numbered, last=len(numbered)))
    _write_table(
        directory / ADE_FULL_CLASSES,
        ("train_id", "ade_index", "name"),
        (
            (position, ade_full_indices()[k], ", ".join(names))
            for position, (k, names) in enumerate(full.items())
        ),
    )
    context = {number: CLASSES[k].names for k, number in context_indices().items()}
    _write_text(directory / CONTEXT_NAMES, _name_lines(context, last=len(context)))


def _name_lines(entries: Mapping[int, tuple[str, ...]], *, last: int) -> str:
    lines = [f"{k}:{','.join(entries.get(k, ('invalid_class_id',)))}" for k in range(last + 1)]
    return "\n".join(lines) + "\n"


def _write_table(path: Path, columns: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    _write_text(path, table.getvalue())


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as stream:
        stream.write(text)
