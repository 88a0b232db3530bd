"""Tables of the paper, from evaluations and published numbers: CSV, Markdown, TeX and a card."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.evaluation.metrics import DECIMALS, METRICS, METRICS_OF
from possam.params.project import Project
from possam.params.published import PublishedRow, read_published, slips
from possam.params.tables import (
    EXTERNAL,
    MEASURED,
    TRAINED,
    TRAINING_FREE,
    ControlParams,
    Evaluation,
    Origin,
    RowParams,
    TableParams,
)
from possam.reporting.error_budget import budget_card
from possam.reporting.measurement import Comparisons, Measurement
from possam.reporting.table_tex import tex
from possam.reporting.table_text import markdown, terminal
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write, hash_json, read_json, write_json

Measurements = Mapping[Origin, Measurement]

SUPPLEMENT = ("pq_things", "pq_stuff", "pq_seen", "pq_unseen", "pq_class_agnostic", "miou_union")
"""Metrics shown below the table, for each row and group of columns that is measured here."""


@dataclass(frozen=True)
class _Source:
    """Finds measurements; its errors say how to make those that are missing."""

    project: Project
    name: str
    measurements: Measurements

    @property
    def table(self) -> TableParams:
        return self.project.table(self.name)

    def find(self, origin: Origin) -> Measurement:
        scale, keys = self.project.name, origin.evaluations(self.project.scale.seeds)
        if origin not in self.measurements:
            commands = "; ".join(
                f"possam evaluate {key.run} {key.benchmark} "
                + (f"--seed {key.seed} --condition {key.condition} " if key.is_trained else "")
                + f"--scale {scale}"
                for key in keys
            )
            raise InputError(f"{self.where(origin)}: no evaluation; make it: {commands}")
        found = self.measurements[origin]
        stated = [tuple(one.get(name) for name in Evaluation._fields) for one in found.evaluations]
        scales = {evaluation.get("scale") for evaluation in found.evaluations}
        if stated != [tuple(key) for key in keys] or scales != {scale}:
            raise InputError(
                f"{self.where(origin)}: the evaluations say that they are of {stated}, "
                f"scale {', '.join(map(repr, scales))}; evaluate the run again"
            )
        return found

    def where(self, origin: Origin) -> str:
        """``origin`` in an error message."""
        run, benchmark, condition, variant = origin
        return f"{self.name}: run {run!r} on {benchmark!r} ({condition}, {variant})"

    def cell(self, origin: Origin, name: str) -> dict[str, Any]:
        """As :meth:`metric`; only ``missing``, the reason, if external predictions lack it."""
        found = self.find(origin)
        if not origin.is_external or found.get(name) is not None:
            return self.metric(origin, name)
        if name in found.metrics:
            return {"missing": "no such class occurs in this test set"}
        reason = "label maps do not tell segments apart"
        if name in METRICS_OF["instance"]:
            reason = (
                "it ranks masks by scores, which panoptic predictions and label maps do not have"
            )
        return {"missing": reason}

    def metric(self, origin: Origin, name: str) -> dict[str, float | None]:
        """``value``, ``low``, ``high`` and ``std`` in percent."""
        found = self.find(origin).get(name)
        if found is None:
            raise InputError(
                f"{self.where(origin)}: metric {name!r} is missing; add it to the benchmark's "
                "metrics and evaluate again"
            )
        return found


def build_table(
    project: Project,
    table: str,
    measurements: Measurements,
    comparisons: Comparisons,
    *,
    out: Path,
) -> dict[str, Any]:
    """Write a table as CSV (for machines), Markdown (for people), TeX (for papers) and a card.

    Args:
        measurements: what the table and its controls show.
        out: the CSV; the others lie beside it, as ``.md``, ``.tex`` and ``.json``.

    Returns:
        The card: everything that the other files show, unrounded, with its provenance.

    Raises:
        InputError: an unknown table, a published file that does not fit, or a missing evaluation
            or metric of a reproduced row.
    """
    card = _card(project, table, measurements, comparisons)
    write_json(out.with_suffix(".json"), card)
    write_json(out.with_suffix(".metrics.json"), cell_values(card))
    for suffix, text in ((".md", markdown), (".tex", tex), (".csv", csv_text)):
        with atomic_write(out.with_suffix(suffix)) as stream:
            stream.write(text(card))
    return card


def _card(
    project: Project, table: str, measurements: Measurements, comparisons: Comparisons
) -> dict[str, Any]:
    """What the other files are written from."""
    source = _Source(project, table, measurements)
    params, scale, seeds = source.table, project.scale, project.scale.seeds
    published = read_published(project.folder / "published" / params.published, params)
    return {
        "table": table,
        "title": params.title,
        "scale": project.name,
        "scale_title": scale.title,
        "synthetic": scale.synthetic,
        "comparable": not scale.synthetic,
        "seeds": list(seeds),
        "confidence": scale.evaluation.confidence,
        "labels": dict(params.labels),
        "groups": dict(params.groups),
        "columns": [
            column.model_dump() | {"decimals": DECIMALS[column.metric]} for column in params.columns
        ],
        "metrics": {name: METRICS[name] for name in SUPPLEMENT},
        "reference": params.reference,
        "rows": [
            _row(row, source, published[row.name], comparisons.differences.get(row.name, {}))
            for row in params.rows
        ],
        "agreement": {key: dict(found) for key, found in comparisons.agreement.items()},
        "budget": budget_card(
            params, comparisons.budget, lambda origin, name: source.find(origin).get(name)
        ),
        "controls": [_control(control, source) for control in params.controls],
        "notes": [f"{row.name}: {row.note}" for row in params.rows if row.note],
        "slips": slips(params, published),
        "published_file": params.published,
        "protocol": [
            _place(origin) | source.find(origin).parts()[0].get("protocol", {})
            for origin in params.origins()
            if origin.condition in (TRAINED, EXTERNAL, TRAINING_FREE)
        ],
        "evaluations": {
            key.name: _provenance(evaluation)
            for origin in params.origins()
            for key, evaluation in zip(
                origin.evaluations(seeds), source.find(origin).evaluations, strict=True
            )
        },
    }


def _row(
    row: RowParams,
    source: _Source,
    published: PublishedRow,
    versus: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    cells = {}
    for column in source.table.columns:
        stated = published.values.get(column.key)
        cell: dict[str, Any] = {"published": stated, "printed": published.texts.get(column.key, "")}
        if column.group in row.cells:
            cell |= source.cell(row.cells[column.group].origin, column.metric)
            if "value" in cell:
                cell["difference"] = None if stated is None else cell["value"] - stated
                cell["versus"] = dict(versus[column.key]) if column.key in versus else None
        cells[column.key] = cell
    return {
        "row": row.name,
        "venue": published.venue,
        "labels": dict(published.labels),
        "source": row.source,
        "cells": cells,
        "runs": {group: _run(cell.origin, source) for group, cell in row.cells.items()},
    }


def _place(origin: Origin) -> dict[str, Any]:
    variant = "" if origin.is_external else origin.variant
    return {"run": origin.run, "benchmark": origin.benchmark, "variant": variant}


def _run(origin: Origin, source: _Source) -> dict[str, Any]:
    """The results behind a group of columns, one per seed, with metrics that are not shown."""
    found = source.find(origin)
    return {
        **_place(origin),
        "run_identity": [one.get("run_identity", "") for one in found.evaluations],
        "evaluation_identity": [one.get("identity", "") for one in found.evaluations],
        "evaluation_hash": [hash_json(one) for one in found.evaluations],
        "pq": [part["metrics"].get("pq") for part in found.parts()],
        "check": [part.get("check") for part in found.parts()],
        "supplement": {
            name: measured for name in SUPPLEMENT if (measured := found.get(name)) is not None
        },
    }


def _control(control: ControlParams, source: _Source) -> dict[str, Any]:
    """A control and, where it was measured, the trained run on the same benchmark."""
    titles: dict[str, str] = {}
    for column in source.table.columns:
        titles.setdefault(column.metric, column.title)
    known = control.origin in source.measurements
    return {
        **{key: getattr(control, key) for key in ("name", *Origin._fields)},
        "metrics": {
            metric: {
                "title": title,
                **source.metric(control.own_origin, metric),
                "trained": source.metric(control.origin, metric)["value"] if known else None,
            }
            for metric, title in titles.items()
        },
    }


def _provenance(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        *("identity", "run_identity", "accepted_code", "device", "inputs", "code"),
        *("templates", "counts"),
    )
    return {"content_hash": hash_json(evaluation)} | {
        name: evaluation[name] for name in names if name in evaluation
    }


def cell_values(card: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Row -> column (of a control: metric) -> the value measured here, for ``dvc metrics``."""
    rows = {
        row["row"]: {key: cell["value"] for key, cell in row["cells"].items() if "value" in cell}
        for row in card["rows"]
        if row["runs"]
    }
    budget = {
        f"{card['reference']}, {line}, {found['group']}": {
            name: value["value"] for name, value in values.items()
        }
        for found in card["budget"]
        for line, values in found["lines"].items()
        if line != MEASURED
    }
    return (
        rows
        | budget
        | {
            control["name"]: {
                metric: found["value"] for metric, found in control["metrics"].items()
            }
            for control in card["controls"]
        }
    )


def csv_text(card: Mapping[str, Any]) -> str:
    """The CSV: published values as printed, measured ones with four decimals, else empty.

    ``_std`` is over seeds, empty with one seed; ``_difference`` is to the published value,
    ``_versus`` to the table's reference row; hashes of several seeds are joined by a space.
    """
    run_parts, run_hashes = ("run", "variant"), ("run_identity", "evaluation_hash")
    reproduced = {group for row in card["rows"] for group in row["runs"]}
    header = ["row", *card["labels"], "source", "comparable"]
    for column in card["columns"]:
        parts = _CELL_PARTS if column["group"] in reproduced else ("",)
        header += [f"{column['key']}{part}" for part in parts]
    for group in card["groups"]:
        if group in reproduced:
            header += [f"{group}_{part}" for part in (*run_parts, *run_hashes)]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, header, restval="", lineterminator="\n")
    writer.writeheader()
    for row in card["rows"]:
        line = {"row": row["row"], **row["labels"], "source": row["source"]}
        line["comparable"] = str(card["comparable"]).lower()
        for key, cell in row["cells"].items():
            line |= {f"{key}{part}": text for part, text in _csv_cell(cell).items()}
        for group, run in row["runs"].items():
            line |= {f"{group}_{part}": run[part] for part in run_parts}
            line |= {f"{group}_{part}": " ".join(run[part]) for part in run_hashes}
        writer.writerow(line)
    return stream.getvalue()


_CELL_PARTS = (
    *("", "_low", "_high", "_std", "_published", "_difference"),
    *("_versus", "_versus_low", "_versus_high"),
)


def _csv_cell(cell: Mapping[str, Any]) -> dict[str, str]:
    """The texts of a cell by :data:`_CELL_PARTS`."""
    if "value" not in cell:
        return {"_published" if "missing" in cell else "": cell["printed"]}
    values = {f"_{part}": cell[part] for part in ("low", "high", "std", "difference")}
    versus = cell["versus"] or {}
    values |= {f"_versus_{part}": versus.get(part) for part in ("low", "high")}
    values |= {"": cell["value"], "_versus": versus.get("value")}
    texts = {part: f"{value:.4f}" for part, value in values.items() if value is not None}
    return texts | {"_published": cell["printed"]}


def print_table(path: Path) -> None:
    """Print a finished table for a terminal of 80 columns: the CSV ``path``, its card beside it."""
    print(terminal(read_json(path.with_suffix(".json"))), end="")
