"""Published numbers of a table, as printed, and what arithmetic says against some of them."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from possam.errors import InputError
from possam.table_params import ColumnParams, TableParams

NAME, VENUE = "method", "venue"


@dataclass(frozen=True)
class PublishedRow:
    """One row as published: the cells' texts (unchanged) and values in percent, by column key."""

    name: str
    venue: str
    texts: Mapping[str, str]
    values: Mapping[str, float]


def read_published(path: Path, table: TableParams) -> dict[str, PublishedRow]:
    """The published rows by name, for every row of ``table``; empty cells are left out.

    Raises:
        InputError: a missing file, row or column, or a cell that is no number.
    """
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            lines = list(csv.DictReader(stream))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; published values belong there") from error
    if not lines:
        raise InputError(f"{path}: no rows; published values belong there")
    for key in (NAME, VENUE, *(column.key for column in table.columns)):
        if key not in lines[0]:
            raise InputError(f"{path}: column {key!r} is missing")
    rows = {}
    for line in lines:
        texts = {c.key: line[c.key] for c in table.columns if line[c.key]}
        values = {}
        for key, text in texts.items():
            try:
                values[key] = float(text)
            except ValueError as error:
                raise InputError(f"{path}: {line[NAME]}: {key}: {text!r} is no number") from error
        rows[line[NAME]] = PublishedRow(line[NAME], line[VENUE] or "", texts, values)
    missing = [row.name for row in table.rows if row.name not in rows]
    if missing:
        raise InputError(f"{path}: no row for {missing[0]!r}, which the table has")
    return rows


def find_slips(table: TableParams, row: PublishedRow) -> list[str]:
    """What cannot be, or can hardly be, right in a published row.

    PQ is SQ x RQ in every class, so that averages obey PQ <= RQ; and two metrics, or two
    directions, that agree to the last printed digit are more likely a copy than a coincidence.
    """
    notes = []
    for group in table.groups:
        found = {c.metric: row.values.get(c.key) for c in table.columns if c.group == group}
        pq, rq = found.get("pq"), found.get("rq")
        if pq is not None and rq is not None and rq < pq:
            notes.append(
                f"{row.name}, {table.groups[group]}: RQ {rq:g} is below PQ {pq:g}, which no data "
                "can give (PQ is at most RQ in every class)"
            )
    for first, second in itertools.combinations(table.columns, 2):
        text = row.texts.get(first.key)
        if text is not None and text == row.texts.get(second.key):
            notes.append(
                f"{row.name}: {_title(table, first)} and {_title(table, second)} are both {text}: "
                "one is likely a copy"
            )
    return notes


def _title(table: TableParams, column: ColumnParams) -> str:
    return f"{column.title} ({table.groups[column.group]})"


def slips(table: TableParams, rows: Mapping[str, PublishedRow]) -> list[str]:
    """Notes on all rows that the table shows, in its order."""
    names: Sequence[str] = [row.name for row in table.rows]
    return [note for name in names for note in find_slips(table, rows[name])]
