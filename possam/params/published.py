"""Published numbers of a table, as printed, and notes on those that are probably wrong."""

import csv
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from possam.params.tables import TableParams
from possam.runtime.errors import InputError
from possam.runtime.reading import reading

NAME, VENUE = "method", "venue"


@dataclass(frozen=True)
class PublishedRow:
    """One row as published: labels, cells' texts (unchanged) and their values, by column key."""

    name: str
    venue: str
    labels: Mapping[str, str]
    texts: Mapping[str, str]
    values: Mapping[str, float]


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, dict[str, float]]:
    """Columns of a published file, by row name; rows with an empty cell are left out.

    Raises:
        InputError: a missing file or column, or a cell that is no number.
    """
    lines = _read_lines(path, (NAME, *columns))
    return {
        line[NAME]: {key: _number(path, line, key) for key in columns}
        for line in lines
        if all(line[key] for key in columns)
    }


def _read_lines(path: Path, keys: Sequence[str]) -> list[dict[str, str]]:
    try:
        with (
            reading(path, missing="published values belong there"),
            open(path, encoding="utf-8-sig", newline="") as stream,
        ):
            lines = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); save it as one") from error
    if not lines:
        raise InputError(f"{path}: no rows; published values belong there")
    for key in keys:
        if key not in lines[0]:
            raise InputError(f"{path}: column {key!r} is missing")
    return lines


def _number(path: Path, line: Mapping[str, str], key: str) -> float:
    try:
        value = float(line[key])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}: {line[NAME]}: {key}: {line[key]!r} is no number")
    return value


def read_published(path: Path, table: TableParams) -> dict[str, PublishedRow]:
    """The published rows by name, for every row of ``table``; empty cells are left out.

    Raises:
        InputError: a missing file, row or column, a cell that is no number, or a line for a row
            that the table calls unpublished (such a row has no cells).
    """
    rows = {}
    keys = (NAME, *table.labels, *(column.key for column in table.columns))
    for line in _read_lines(path, keys):
        texts = {c.key: line[c.key] for c in table.columns if line[c.key]}
        values = {key: _number(path, line, key) for key in texts}
        labels = {key: line[key] for key in table.labels}
        rows[line[NAME]] = PublishedRow(line[NAME], line.get(VENUE, ""), labels, texts, values)
    for row in table.rows:
        if row.published and row.name not in rows:
            raise InputError(
                f"{path}: no row for {row.name!r}, which the table has (a row that was "
                "never published says so: published: false)"
            )
        if not row.published:
            if row.name in rows:
                raise InputError(
                    f"{path}: has a row for {row.name!r}, which the table calls unpublished; "
                    "remove its published: false"
                )
            rows[row.name] = PublishedRow(row.name, "", dict.fromkeys(table.labels, ""), {}, {})
    return rows


def find_slips(table: TableParams, row: PublishedRow) -> list[str]:
    """Notes on what is wrong, or very likely wrong, in a published row.

    PQ is SQ x RQ in every class, so averages obey PQ <= RQ. PQ of all classes is a weighted mean of
    PQ of things and PQ of stuff, and lies between them. Two metrics, or two directions, that agree
    to the last printed digit are more likely a copy than a coincidence.
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
        things, stuff = found.get("pq_things"), found.get("pq_stuff")
        if pq is None or things is None or stuff is None:
            continue
        if not min(things, stuff) <= pq <= max(things, stuff):
            notes.append(
                f"{row.name}, {table.groups[group]}: PQ {pq:g} does not lie between that of things "
                f"{things:g} and of stuff {stuff:g}, whose mean over classes it is"
            )
    for first, second in itertools.combinations(table.columns, 2):
        text = row.texts.get(first.key)
        if text is not None and text == row.texts.get(second.key):
            one, other = (f"{c.title} ({table.groups[c.group]})" for c in (first, second))
            notes.append(f"{row.name}: {one} and {other} are both {text}: one is likely a copy")
    return notes


def slips(table: TableParams, rows: Mapping[str, PublishedRow]) -> list[str]:
    """Notes on all rows that the table shows, in its order."""
    return [note for row in table.rows for note in find_slips(table, rows[row.name])]
