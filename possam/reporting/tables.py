"""Tables of the paper, from evaluations and published numbers: CSV, Markdown and a JSON card."""

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.errors import InputError
from possam.files import atomic_write, hash_json, read_json, write_json
from possam.params import METRICS, CellParams, ColumnParams, Project, RowParams, TableParams
from possam.reporting.published import PublishedRow, read_published, slips
from possam.reporting.table_text import markdown, terminal

Key = tuple[str, str, str]
Evaluation = Mapping[str, Any]

SUPPLEMENT = ("pq_things", "pq_stuff", "pq_seen", "pq_unseen", "pq_class_agnostic", "miou_union")
"""Metrics beside the table, for each reproduced cell group."""


@dataclass(frozen=True)
class _Source:
    """Evaluations with errors that say what to do."""

    project: Project
    table: str
    evaluations: Mapping[Key, Evaluation]

    def find(self, key: Key) -> Evaluation:
        run, benchmark, condition = key
        where = f"{self.table}: run {run!r} on {benchmark!r} ({condition})"
        if key not in self.evaluations:
            raise InputError(
                f"{where}: no evaluation; make it: possam evaluate {run} {benchmark} "
                f"--condition {condition} --scale {self.project.name}"
            )
        evaluation = self.evaluations[key]
        stated = tuple(evaluation.get(name) for name in ("run", "benchmark", "condition"))
        if stated != key or evaluation.get("scale", self.project.name) != self.project.name:
            raise InputError(
                f"{where}: the evaluation says it is of {stated}, scale "
                f"{evaluation.get('scale')!r}; evaluate the run again"
            )
        return evaluation

    def metric(self, key: Key, name: str) -> dict[str, float]:
        """``value``, ``low``, ``high`` in percent."""
        evaluation = self.find(key)
        value = evaluation["metrics"].get(name)
        interval = evaluation["intervals"].get(name)
        if value is None or interval is None or not math.isfinite(value):
            raise InputError(
                f"{self.table}: run {key[0]!r} on {key[1]!r} ({key[2]}): metric {name!r} is "
                "missing; add it to the benchmark's metrics and evaluate again"
            )
        return {"value": float(value), "low": float(interval[0]), "high": float(interval[1])}


def build_table(
    project: Project,
    table: str,
    evaluations: Mapping[Key, Evaluation],
    *,
    out_csv: Path,
    out_md: Path,
    out_json: Path | None = None,
) -> dict[str, Any]:
    """Write a table as CSV (for machines), Markdown (for people) and a card of its provenance.

    Args:
        evaluations: contents of ``evaluation.json`` by (run, benchmark, condition).
        out_json: of the card; default: beside the CSV.

    Returns:
        The card: everything that the CSV and the Markdown show, unrounded, and where it is from.

    Raises:
        InputError: an unknown table, a published file that does not fit, or a missing evaluation
            or metric of a reproduced row.
    """
    if table not in project.tables:
        raise InputError(
            f"{project.folder / 'tables.yaml'}: unknown table {table!r}; "
            f"valid choices: {', '.join(project.tables)}"
        )
    card = make_card(project, table, evaluations)
    write_json(out_json if out_json is not None else out_csv.with_suffix(".json"), card)
    with atomic_write(out_md) as stream:
        stream.write(markdown(card))
    with atomic_write(out_csv) as stream:
        stream.write(csv_text(card))
    return card


def make_card(
    project: Project, table: str, evaluations: Mapping[Key, Evaluation]
) -> dict[str, Any]:
    """The card of :func:`build_table`, from which CSV and Markdown are written."""
    params, source = project.tables[table], _Source(project, table, evaluations)
    path = project.folder / "published" / params.published
    published = read_published(path, params)
    keys = _needed(params)
    return {
        "table": table,
        "title": params.title,
        "scale": project.name,
        "scale_title": project.scale.title,
        "synthetic": project.scale.synthetic,
        "comparable": not project.scale.synthetic,
        "confidence": project.scale.evaluation.confidence,
        "groups": dict(params.groups),
        "columns": [column.model_dump() for column in params.columns],
        "metrics": {name: METRICS[name] for name in SUPPLEMENT},
        "rows": [_row(row, params, source, published[row.name]) for row in params.rows],
        "controls": [
            _control(
                control.name,
                CellParams(run=control.run, benchmark=control.benchmark),
                control.condition,
                params,
                source,
            )
            for control in params.controls
        ],
        "slips": slips(params, published),
        "published_file": params.published,
        "protocol": {
            f"{run}/{benchmark}": evaluations[run, benchmark, condition].get("protocol", {})
            for run, benchmark, condition in keys
            if condition == "trained"
        },
        "evaluations": {"/".join(key): _provenance(source.find(key)) for key in keys},
    }


def _needed(table: TableParams) -> list[Key]:
    """Every evaluation that the table shows, once."""
    keys: dict[Key, None] = {}
    for row in table.rows:
        for cell in row.cells.values():
            keys[cell.run, cell.benchmark, "trained"] = None
    for control in table.controls:
        keys[control.run, control.benchmark, control.condition] = None
    return list(keys)


def _row(
    row: RowParams, table: TableParams, source: _Source, published: PublishedRow
) -> dict[str, Any]:
    cells = {}
    for column in table.columns:
        stated = published.values.get(column.key)
        cell: dict[str, Any] = {"published": stated, "printed": published.texts.get(column.key, "")}
        if column.group in row.cells:
            place = row.cells[column.group]
            cell |= source.metric((place.run, place.benchmark, "trained"), column.metric)
            cell["difference"] = None if stated is None else cell["value"] - stated
        cells[column.key] = cell
    return {
        "row": row.name,
        "venue": published.venue,
        "source": "reproduced" if row.cells else "published",
        "cells": cells,
        "runs": {group: _run(place, source) for group, place in row.cells.items()},
    }


def _run(place: CellParams, source: _Source) -> dict[str, Any]:
    """The run behind one group of columns, with the metrics that the table does not show."""
    key = (place.run, place.benchmark, "trained")
    evaluation = source.find(key)
    extra = {
        name: {
            "value": evaluation["metrics"][name],
            "interval": evaluation["intervals"].get(name),
        }
        for name in SUPPLEMENT
        if evaluation["metrics"].get(name) is not None
    }
    return {
        "run": place.run,
        "benchmark": place.benchmark,
        "run_identity": evaluation.get("run_identity", ""),
        "evaluation_identity": evaluation.get("identity", ""),
        "evaluation_hash": hash_json(evaluation),
        "pq": evaluation["metrics"].get("pq"),
        "check": evaluation.get("check"),
        "supplement": extra,
    }


def _control(
    name: str, place: CellParams, condition: str, table: TableParams, source: _Source
) -> dict[str, Any]:
    """A control and, for comparison, the trained run on the same benchmark where it is known."""
    key, trained = (place.run, place.benchmark, condition), (place.run, place.benchmark, "trained")
    metrics: dict[str, ColumnParams] = {}
    for column in table.columns:
        metrics.setdefault(column.metric, column)
    return {
        "name": name,
        "run": place.run,
        "benchmark": place.benchmark,
        "condition": condition,
        "metrics": {
            metric: {
                "title": column.title,
                **source.metric(key, metric),
                "trained": source.metric(trained, metric)["value"]
                if trained in source.evaluations
                else None,
            }
            for metric, column in metrics.items()
        },
    }


def _provenance(evaluation: Evaluation) -> dict[str, Any]:
    names = ("identity", "run_identity", "inputs", "code", "templates", "counts", "check")
    return {"content_hash": hash_json(evaluation)} | {
        name: evaluation[name] for name in names if name in evaluation
    }


def csv_text(card: Mapping[str, Any]) -> str:
    """The CSV: published values as printed, ours with four decimals; empty where there is none."""
    reproduced = {group for row in card["rows"] for group in row["runs"]}
    header = ["row", "source", "comparable"]
    for column in card["columns"]:
        header.append(column["key"])
        if column["group"] in reproduced:
            header += [f"{column['key']}_{part}" for part in _PARTS]
    for group in card["groups"]:
        if group in reproduced:
            header += [f"{group}_{part}" for part in _RUN_PARTS]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    for row in card["rows"]:
        line = {
            "row": row["row"],
            "source": row["source"],
            "comparable": str(card["comparable"]).lower(),
        }
        for column in card["columns"]:
            key, cell = column["key"], row["cells"][column["key"]]
            if "value" not in cell:
                line[key] = cell["printed"]
                continue
            line[key] = f"{cell['value']:.4f}"
            line |= {f"{key}_{part}": f"{cell[part]:.4f}" for part in ("low", "high")}
            line[f"{key}_published"] = cell["printed"]
            if cell["difference"] is not None:
                line[f"{key}_difference"] = f"{cell['difference']:.4f}"
        for group, run in row["runs"].items():
            line |= {f"{group}_{part}": run[part] for part in _RUN_PARTS}
        writer.writerow(line)
    return stream.getvalue()


_PARTS = ("low", "high", "published", "difference")
_RUN_PARTS = ("run", "run_identity", "evaluation_hash")


def print_table(path: Path) -> None:
    """Print a finished table, narrow enough for a terminal of 80 columns.

    Args:
        path: the CSV; the card lies beside it.
    """
    print(terminal(read_json(path.with_suffix(".json"))), end="")
