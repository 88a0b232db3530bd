"""Result files as records that a tracking server can show: runs, evaluations, tables, figures.

A record holds everything that is sent, with timestamps taken from the files, so that sending it
twice sends the same thing. What ``params/`` decides is a parameter; what only the result knows
(hashes, paths, the evaluation's protocol) is a tag.
"""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from possam.params.layout import RUN_LOCK
from possam.params.project import Project
from possam.params.tables import DEFAULT_VARIANT, EXTERNAL, TRAINING_FREE
from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, read_json, sha256_file
from possam.runtime.locks import is_held

FORMAT = 2
"""Part of every content hash: raise it when the same files are to be shown in another way."""

TABLE, NOTE = "possam.table", "mlflow.note.content"
"""Tags: a table's name; a run's description in MLflow's pages (Markdown)."""

_LONGEST = 5000
"""Longer texts are cut to this many characters."""

Status = Literal["FINISHED", "RUNNING", "KILLED"]


class Point(NamedTuple):
    """One metric value; ``time`` in milliseconds since 1970."""

    name: str
    value: float
    time: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry of the tracking server.

    Attributes:
        key: ``training/<run>/seed<N>``, ``evaluation/<run>/seed<N>/<benchmark>/<condition>``,
            ``table/<name>`` or ``figure/<name>``.
        content: hash of the files behind it.
        parent: key of the training behind an evaluation (external predictions have none).
        links: keys of the evaluations behind a table.
        status: of an unfinished training, ``RUNNING`` if a process works on it, else ``KILLED``.
        start, end: milliseconds since 1970; ``end`` is None for a live run.
        config: nested parameters, shown as a file.
    """

    key: str
    content: str
    parent: str | None = None
    links: tuple[str, ...] = ()
    status: Status = "FINISHED"
    start: int
    end: int | None
    parameters: dict[str, str] = field(default_factory=dict)
    points: tuple[Point, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    artifacts: tuple[Path, ...] = ()


def read_records(results: Path, project: Project) -> list[Record]:
    """Trainings, evaluations, tables and figures below ``results``, the folder of a scale.

    Each kind is sorted by name. A folder without a result file (of a killed stage) is no record.

    Raises:
        InputError: a result file is malformed; the message names it.
    """
    common = {
        "possam.scale": project.name,
        "possam.synthetic": str(project.scale.synthetic).lower(),
    }
    trainings = [
        _training(path, common)
        for path in sorted((results / "runs").glob("*/seed*"))
        if _existing(path / "run.json", path / "metrics.jsonl")
    ]
    evaluations = [
        _evaluation(path, common)
        for path in sorted((results / "evaluations").glob("*/seed*/*/*/evaluation.json"))
    ]
    known = {record.key for record in evaluations}
    tables = [
        _table(path, project, known, common)
        for name in sorted(project.tables)
        if (path := results / f"{name}.csv").is_file()
    ]
    figures = [_figure(path, common) for path in sorted((results / "figures").glob("*.json"))]
    return trainings + evaluations + tables + figures


def _training(folder: Path, common: Mapping[str, str]) -> Record:
    run, seed = folder.parts[-2:]
    summary_file, log = folder / "run.json", folder / "metrics.jsonl"
    held = is_held(folder / RUN_LOCK)  # before looking for the summary: it may end in between
    files = _existing(summary_file, folder / "provenance.json", folder / "identity.json", log)
    finished = summary_file in files
    status: Status = "FINISHED" if finished else "RUNNING" if held else "KILLED"
    # Before the log is read: a live run may append to it.
    content = _content(files, {**common, "status": status})
    summary = _mapping(summary_file) if finished else {}
    origin = _optional(folder / "provenance.json") if finished else {}
    # A live run has no provenance yet: its identity is written first, and once.
    start, last = _times(origin, files[0])
    points = _step_points(log, start, finished=finished) if log in files else []
    if not finished:
        last = points[-1].time if points else start
    begun = summary or _optional(folder / "identity.json").get("identity") or {}
    parameters = begun.get("parameters") or {}
    scalars = {key: value for key, value in summary.items() if not isinstance(value, dict | list)}
    if finished:
        final = scalars | flatten_values(summary.get("summary") or {})
        final |= {key: origin.get(key) for key in ("wall_time_s", "peak_memory_mib")}
        points += [Point(f"final.{name}", value, last, 0) for name, value in numbers(final).items()]
    tags = {**common, "possam.kind": "training", "possam.run": run, **_git_tags(origin)}
    tags["possam.seed"] = seed.removeprefix("seed")
    texts = {key: value for key, value in scalars.items() if isinstance(value, str)}
    tags |= {f"possam.{clean(key)}": text for key, text in texts.items()} | _input_tags(summary)
    weights = folder / "weights.safetensors"
    if weights.is_file():
        tags["possam.checkpoint"] = weights.as_posix()
    return Record(
        key=f"training/{run}/{seed}",
        content=content,
        status=status,
        start=start,
        end=None if status == "RUNNING" else last,
        parameters=flatten(parameters),
        config=parameters,
        points=tuple(points),
        tags=tags,
        artifacts=files,
    )


def _evaluation(path: Path, common: Mapping[str, str]) -> Record:
    run, seed, benchmark, condition = path.parts[-5:-1]
    data, origin = _mapping(path), _optional(path.with_name("provenance.json"))
    variants = data.get("variants")
    if not isinstance(variants, dict) or DEFAULT_VARIANT not in variants:
        raise InputError(f"{path}: variants: a mapping with {DEFAULT_VARIANT!r} is expected")
    start, end = _times(origin, path)
    values = numbers(flatten_values(data.get("counts") or {}, "counts"))
    untrained = condition in (EXTERNAL, TRAINING_FREE)
    where = {condition: run} if untrained else {"run": run, "seed": seed.removeprefix("seed")}
    where |= {"benchmark": benchmark, "condition": condition}
    trained = path.parents[5] / "runs" / run / seed / "run.json"
    config = dict(origin.get("parameters") or {}) | where
    behind = () if untrained else _existing(trained)
    if behind:
        config["trained"] = _mapping(trained).get("parameters") or {}
    tags = {**common, "possam.kind": "evaluation", **_git_tags(origin), **_input_tags(data)}
    tags |= {f"possam.{key}": value for key, value in where.items()}
    inference = config.get("inference") or {}
    default = inference.get(DEFAULT_VARIANT, {})
    for name, settings in inference.items():
        if name != DEFAULT_VARIANT:
            differing = {key: value for key, value in settings.items() if value != default.get(key)}
            tags[f"possam.variant.{clean(name)}"] = json.dumps(differing)
    # The run's name says nothing that its parameters do not say; other variants are tags.
    compared = {key: value for key, value in config.items() if key != "run"}
    for name, found in variants.items():
        prefix = "" if name == DEFAULT_VARIANT else f"{name}."
        if not isinstance(found, dict) or not isinstance(found.get("metrics"), dict):
            raise InputError(
                f"{path}: variants.{name}.metrics: a mapping of names to numbers is expected"
            )
        values |= numbers({f"{prefix}{key}": value for key, value in _measured(found).items()})
        protocol = {k: v for k, v in (found.get("protocol") or {}).items() if k != "inference"}
        tags |= flatten(protocol, f"possam.protocol.{prefix}".rstrip("."))
    files = _existing(path, path.with_name("provenance.json"))
    return Record(
        key=f"evaluation/{run}/{seed}/{benchmark}/{condition}",
        content=_content((*files, *behind), common),
        parent=None if untrained else f"training/{run}/{seed}",
        start=start,
        end=end,
        parameters=flatten(compared | {"inference": default}),
        config=config,
        points=tuple(Point(clean(name), value, end, 0) for name, value in values.items()),
        tags=tags,
        artifacts=files,
    )


def _measured(variant: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics, bounds of their intervals, and the check, by name."""
    values = dict(variant["metrics"])
    for name, bounds in (variant.get("intervals") or {}).items():
        if bounds is not None:
            values |= {f"{name}_low": bounds[0], f"{name}_high": bounds[1]}
    return values | flatten_values(variant.get("check") or {}, "check")


def _table(path: Path, project: Project, known: set[str], common: Mapping[str, str]) -> Record:
    name, table = path.stem, project.tables[path.stem]
    shown = [f"evaluation/{key.name}" for key in table.evaluations(project.scale.seeds)]
    cells = _table_numbers(path, tuple(column.key for column in table.columns))
    links = tuple(key for key in shown if key in known)
    note, card_file = path.with_suffix(".md"), path.with_suffix(".json")
    files, card = _existing(path, note, card_file), _optional(card_file)
    start, end = _times(card, path)
    tags = {**common, "possam.kind": "table", TABLE: name, **_git_tags(card)}
    tags["possam.title"] = table.title
    if note in files:
        tags[NOTE] = note.read_text(encoding="utf-8")[:_LONGEST]
    return Record(
        key=f"table/{name}",
        content=_content(files, {**common, "links": ",".join(links)}),
        links=links,
        start=start,
        end=end,
        parameters=flatten({"seeds": list(project.scale.seeds), "rows": len(table.rows)}),
        points=tuple(Point(key, value, end, 0) for key, value in cells.items()),
        tags=tags,
        artifacts=files,
    )


def _table_numbers(path: Path, keys: tuple[str, ...]) -> dict[str, float]:
    """``row/column`` -> number, of the columns of ``keys`` and their parts (``<key>_low``)."""
    found: dict[str, float] = {}
    with open(path, encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            (_, label), *cells = row.items()
            for column, text in cells:  # only these columns: a hash may look like a number
                if any(column == key or str(column).startswith(f"{key}_") for key in keys):
                    with suppress(TypeError, ValueError):
                        found[f"{label}/{column}"] = float(text)
    return numbers(found)


def _figure(path: Path, common: Mapping[str, str]) -> Record:
    card = _mapping(path)
    drawn = card.get("parameters") or {}
    tags = {**common, "possam.kind": "figure", "possam.figure": path.stem}
    tags |= {f"possam.{key}": str(card[key]) for key in ("title", "code") if key in card}
    tags[NOTE] = "\n\n".join(str(card[k]) for k in ("title", "subtitle", "note") if card.get(k))
    files = _existing(path, path.with_suffix(".png"), path.with_suffix(".pdf"))
    start, end = _times(card, path)
    return Record(
        key=f"figure/{path.stem}",
        content=_content(files, common),
        start=start,
        end=end,
        parameters=flatten({key: value for key, value in drawn.items() if key != "title"}),
        config=drawn,
        tags=tags,
        artifacts=files,
    )


def _step_points(log: Path, start: int, *, finished: bool) -> list[Point]:
    """One point per metric and step; the ``time`` of a line is in seconds of training so far."""
    *rows, tail = log.read_text(encoding="utf-8").split("\n")
    if tail and finished:
        raise InputError(f"{log}: the last line has no end; the file is truncated")
    points: dict[tuple[str, int], Point] = {}
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
        except json.JSONDecodeError as error:
            raise InputError(f"{log}:{number}: not valid JSON ({error})") from error
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise InputError(f"{log}:{number}: an object with a whole number 'step' is expected")
        step, seconds = line.pop("step"), line.pop("time", 0.0)
        if not isinstance(seconds, int | float):
            raise InputError(f"{log}: step {step}: time: a number of seconds is expected")
        time = start + int(1000 * seconds)
        for name, value in numbers(flatten_values(line)).items():
            points[name, step] = Point(name, value, time, step)
    return list(points.values())


def _mapping(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict):
        raise InputError(f"{path}: a JSON object is expected at the top level")
    return data


def _optional(path: Path) -> dict[str, Any]:
    return _mapping(path) if path.is_file() else {}


def _times(origin: Mapping[str, Any], file: Path) -> tuple[int, int]:
    """Start and end (ms) from the provenance; without one, the file's modification time."""
    if "started" not in origin:
        modified = int(1000 * file.stat().st_mtime)
        return modified, modified
    try:
        start = int(1000 * datetime.fromisoformat(origin["started"]).timestamp())
    except (TypeError, ValueError) as error:
        raise InputError(f"{file.parent}: provenance: started: not an ISO date: {error}") from error
    return start, start + int(1000 * float(origin.get("wall_time_s") or 0.0))


def _git_tags(origin: Mapping[str, Any]) -> dict[str, str]:
    git = origin.get("git")
    if not isinstance(git, dict):
        return {}
    dirty = "unknown" if git.get("dirty") is None else str(bool(git["dirty"])).lower()
    commit = str(git.get("commit", "unknown"))
    return {"mlflow.source.git.commit": commit, "possam.git_dirty": dirty}


def _input_tags(result: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the data set, the towers and the weights behind a result."""
    return flatten(result.get("inputs") or {}, "possam.input")


def _existing(*paths: Path) -> tuple[Path, ...]:
    return tuple(path for path in paths if path.is_file())


def _content(files: Iterable[Path], context: Mapping[str, str]) -> str:
    hashes = {path.name: sha256_file(path) for path in files}
    return hash_json({"format": FORMAT, "context": dict(context), "files": hashes})


def points_hash(points: Iterable[Point]) -> str:
    """SHA-256 (hex) of a sequence of points, to see whether a longer sequence begins with it."""
    digest = hashlib.sha256()
    for point in points:
        digest.update(repr(tuple(point)).encode())
    return digest.hexdigest()


def flatten_values(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists and scalars are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten_values(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as text: dotted keys, strings as they are, everything else as JSON."""
    flat = {}
    for key, item in flatten_values(value, prefix).items():
        text = item if isinstance(item, str) else json.dumps(item, sort_keys=True)
        if len(text) > _LONGEST:
            text = f"{text[:_LONGEST]} ... ({len(text)} characters)"
        if key:
            flat[clean(key)] = text
    return flat


def clean(name: str) -> str:
    """A name with the characters that MLflow allows in keys (brackets and others become ``_``)."""
    return re.sub(r"[^\w\-. /]", "_", name).strip("/ ")[:240]


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among ``values``, under clean names."""
    return {
        clean(key): float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
