"""MLflow as a view of the result files, built by an ingester that can be run again at any time.

Each record (:mod:`possam.reporting.records`) becomes one run of MLflow. Its tag ``possam.key`` is
set at the start, ``possam.content`` (hash of its files) at the very end: a run without it was left
by a killed ingester and is made anew. A run with another content is superseded: the new one is
completed first, then the old one is deleted (MLflow keeps it until ``mlflow gc``). A growing
training log is appended to. The result files are never touched.

An evaluation lies below its training. Tables share evaluations, and MLflow gives a run one parent:
tags link a table to them (``possam.link.*``) and them to their tables (``possam.shown_in.*``).
"""

import contextlib
import json
import logging
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from possam.params.project import Project
from possam.reporting.records import NOTE, TABLE, Point, Record, points_hash, read_records
from possam.runtime.environment import apply_mlflow_defaults
from possam.runtime.errors import PossamError
from possam.runtime.locks import hold
from possam.runtime.secrets import redact

KEY, CONTENT, LOGGED = "possam.key", "possam.content", "possam.logged"
SUPERSEDED = "possam.superseded_by"
CONFIG, PARENT = "config.yaml", "mlflow.parentRunId"
_LINK, _SHOWN_IN = "possam.link.", "possam.shown_in."

_METRICS_PER_BATCH, _PARAMS_PER_BATCH = 1000, 100
_LARGEST_ARTIFACT = 5 << 20
_SQLITE = "sqlite:///"
_MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in MLflow's pages for model training, not in those for language models."""


class TrackingError(PossamError):
    """The tracking database or server cannot be used; the results are untouched."""


@dataclass
class Summary:
    """What one ingestion did: the keys of the records, by what happened to them.

    ``runs``: MLflow's run id of each; ``removed``: number of outdated or incomplete runs deleted.
    """

    experiment: str
    tracking_uri: str
    created: list[str] = field(default_factory=list)
    extended: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    removed: int = 0
    runs: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        outcomes = ("created", "extended", "replaced", "unchanged")
        counts = (f"{len(getattr(self, name))} {name}" for name in outcomes)
        return f"{self.experiment} in {self.tracking_uri}: {', '.join(counts)}"


def ingest(
    *,
    results: Path,
    project: Project,
    tracking_uri: str,
    experiment: str | None = None,
    lock_timeout: float = 600.0,
) -> Summary:
    """Bring the tracking server up to date with the result files of the project's scale.

    Args:
        results: the folder of the project's scale (``results/mini``).
        tracking_uri: any MLflow address; SQLite's artifacts lie in ``mlartifacts/`` beside it.
        experiment: the MLflow experiment, ``possam-<scale>`` if None.
        lock_timeout: seconds to wait for another ingester.

    Raises:
        TrackingError: the server does not answer, or another ingester holds the lock.
        InputError: a result file is malformed (found before anything is sent).
    """
    name = experiment or f"possam-{project.name}"
    summary = Summary(experiment=name, tracking_uri=redact(tracking_uri))
    _check_address(tracking_uri)
    records = read_records(results, project)
    lock = results / ".tracking.lock"  # for a server; a SQLite file has its lock beside it
    if tracking_uri.startswith(_SQLITE):
        database = _database(tracking_uri)
        lock = database.with_name(f".{database.name}.lock")

    def report_wait() -> None:
        print(f"waiting for another ingester ({lock})", file=sys.stderr, flush=True)

    try:
        with (
            hold(lock, timeout=lock_timeout, on_wait=report_wait),
            _explained(summary.tracking_uri),
        ):
            client = _connect(tracking_uri)
            writer = _Writer(client, _experiment_id(client, name, tracking_uri))
            for record in records:
                writer.bring_up_to_date(record, summary)
            writer.link(records, summary)
    except TimeoutError as error:
        raise TrackingError(
            f"{lock}: another ingester has held this lock for {lock_timeout:g} s; wait "
            "for it to end, then run this again"
        ) from error
    return summary


def follow(
    *,
    results: Path,
    project: Project,
    tracking_uri: str,
    experiment: str | None = None,
    interval: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Summary:
    """Ingest every ``interval`` seconds until no process trains; returns the last summary.

    A tracking server that is down is reported and tried again: live runs do not depend on it.
    """
    while True:
        try:
            summary = ingest(
                results=results, project=project, tracking_uri=tracking_uri, experiment=experiment
            )
        except TrackingError as error:
            print(f"{error}\ntrying again in {interval:g} s", file=sys.stderr, flush=True)
        else:
            print(summary, file=sys.stderr, flush=True)
            if all(record.status != "RUNNING" for record in read_records(results, project)):
                return summary
        sleep(interval)


class _Writer:
    """Writes records into one experiment, whose runs it has listed."""

    def __init__(self, client: Any, experiment_id: str) -> None:
        self._client, self._experiment_id = client, experiment_id
        self._runs: dict[str, list[Any]] = {}
        page = client.search_runs([experiment_id], max_results=1000)
        found = list(page)
        while page.token:
            page = client.search_runs([experiment_id], max_results=1000, page_token=page.token)
            found += page
        for run in found:
            if KEY in run.data.tags:
                self._runs.setdefault(run.data.tags[KEY], []).append(run)

    def bring_up_to_date(self, record: Record, summary: Summary) -> None:
        """Leave exactly one run that shows ``record``, complete."""
        old = sorted(self._runs.get(record.key, []), key=lambda run: run.info.start_time)
        complete = [run for run in old if CONTENT in run.data.tags]
        same = [run for run in complete if run.data.tags[CONTENT] == record.content]
        if same:
            current, outcome = same[0].info.run_id, summary.unchanged
        elif growing := [run for run in complete if self._continues(run, record)]:
            current, outcome = growing[0].info.run_id, summary.extended
            done = json.loads(growing[0].data.tags[LOGGED])["points"]
            self._fill(current, record, record.points[done:])
        else:
            current = self._create(record)
            outcome = summary.replaced if complete else summary.created
        for run in old:
            if run.info.run_id != current:
                self._client.set_tag(run.info.run_id, SUPERSEDED, current)
                self._client.delete_run(run.info.run_id)
                summary.removed += 1
        outcome.append(record.key)
        summary.runs[record.key] = current

    def link(self, records: list[Record], summary: Summary) -> None:
        """Point evaluations to their training and tables to their evaluations (run ids change)."""
        parents = {record.key: record.parent for record in records}
        shown_in = defaultdict[str | None, set[str]](set)
        for table in records:
            for key in table.links:
                shown_in[key].add(table.tags[TABLE])
                shown_in[parents[key]].add(table.tags[TABLE])
        for record in records:
            run_id = summary.runs[record.key]
            tags = {f"{_LINK}{key}": summary.runs[key] for key in record.links}
            tags |= {f"{_SHOWN_IN}{name}": "yes" for name in shown_in[record.key]}
            if record.parent in summary.runs:
                tags[PARENT] = summary.runs[record.parent]
            if record.links:
                query = quote(f"tags.`{_SHOWN_IN}{record.tags[TABLE]}` = 'yes'", safe="")
                page = f"#/experiments/{self._experiment_id}/runs?searchFilter={query}"
                link = f"[Evaluations and trainings behind this table]({page})"
                tags[NOTE] = f"{link}\n\n{record.tags.get(NOTE, '')}"
            before = (run for run in self._runs.get(record.key, []) if run.info.run_id == run_id)
            present: dict[str, str] = next((run.data.tags for run in before), {})
            for name, value in sorted(tags.items()):
                if present.get(name) != value:
                    self._client.set_tag(run_id, name, value)
            for name in sorted(present.keys() - tags.keys()):
                if name.startswith((_LINK, _SHOWN_IN)):
                    self._client.delete_tag(run_id, name)

    @staticmethod
    def _continues(run: Any, record: Record) -> bool:
        """Whether ``run`` shows a live training and ``record`` is the same, further on."""
        logged = json.loads(run.data.tags.get(LOGGED, "{}"))
        if not logged or run.info.status != "RUNNING":
            return False
        if not run.data.params.items() <= record.parameters.items():
            return False
        return points_hash(record.points[: logged["points"]]) == logged["hash"]

    def _create(self, record: Record) -> str:
        run = self._client.create_run(
            self._experiment_id,
            start_time=record.start,
            run_name=record.key,
            tags={KEY: record.key, "mlflow.user": "possam", "mlflow.source.name": "possam track"},
        )
        self._fill(run.info.run_id, record, record.points)
        return str(run.info.run_id)

    def _fill(self, run_id: str, record: Record, points: tuple[Point, ...]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        logged = {"points": len(record.points), "hash": points_hash(record.points)}
        metrics = [Metric(*point) for point in points]
        params = [Param(*item) for item in sorted(record.parameters.items())]
        tags = [RunTag(*item) for item in sorted(record.tags.items())]
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_PER_BATCH])
        for path in record.artifacts:
            if path.stat().st_size <= _LARGEST_ARTIFACT:
                self._client.log_artifact(run_id, str(path))
        if record.config:
            self._client.log_dict(run_id, dict(record.config), CONFIG)
        if record.status != "RUNNING":
            self._client.set_terminated(run_id, record.status, end_time=record.end)
        self._client.log_batch(run_id, tags=[*tags, RunTag(LOGGED, json.dumps(logged))])
        self._client.set_tag(run_id, CONTENT, record.content)


def _connect(uri: str) -> Any:
    apply_mlflow_defaults()
    from mlflow import MlflowClient

    for logger in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    if uri.startswith(_SQLITE):
        _database(uri).parent.mkdir(parents=True, exist_ok=True)
        if not _database(uri).exists():
            _database(uri).touch()  # SQLite would make one that the group may not write
        relocate(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _experiment_id(client: Any, name: str, uri: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = _database(uri).parent / "mlartifacts" / name if uri.startswith(_SQLITE) else None
        location = folder.as_uri() if folder else None
        return str(client.create_experiment(name, location, tags=_MODEL_TRAINING))
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"{redact(uri)}: the experiment {name!r} was deleted; restore it (mlflow experiments "
            f"restore --experiment-id {found.experiment_id}) or give another name"
        )
    return str(found.experiment_id)


def relocate(uri: str) -> None:
    """Point a SQLite store at the ``mlartifacts/`` beside it; nothing for other stores.

    MLflow keeps absolute addresses, which are wrong once a checkout is moved, renamed or copied.
    """
    if not uri.startswith(_SQLITE) or not _database(uri).is_file():
        return
    artifacts = _database(uri).parent / "mlartifacts"
    if not artifacts.is_dir():
        return
    try:
        with contextlib.closing(sqlite3.connect(_database(uri), timeout=60)) as store, store:
            if not store.execute("SELECT 1 FROM sqlite_master WHERE name = 'runs'").fetchone():
                return
            rows = store.execute("SELECT artifact_location FROM experiments").fetchall()
            folders = {str(location).rpartition("/")[0] for (location,) in rows}
            for old in folders - {artifacts.as_uri()}:
                if not old.startswith("file:") or not old.endswith("/mlartifacts"):
                    continue
                columns = {"experiments": "artifact_location", "runs": "artifact_uri"}
                for table, column in columns.items():
                    moved = f"{column} = ? || substr({column}, ?)"
                    inside = f"substr({column}, 1, ?) = ?"
                    values = (artifacts.as_uri(), len(old) + 1, len(old) + 1, f"{old}/")
                    store.execute(f"UPDATE {table} SET {moved} WHERE {inside}", values)
    except sqlite3.Error as error:
        raise TrackingError(
            f"{_database(uri)}: the tracking store cannot be used: {error}; the results are "
            "untouched. Make the file writable, or set POSSAM_TRACKING_URI to another store"
        ) from error


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).partition("?")[0]).absolute()


def _check_address(uri: str) -> None:
    scheme, separator, rest = uri.partition("://")
    if uri == "databricks" or (separator and scheme and rest.strip("/")):
        return
    raise TrackingError(
        f"tracking address {redact(uri)!r}: not an address; set POSSAM_TRACKING_URI to, for "
        "example, sqlite:///mlflow.db or http://server:5000"
    )


@contextlib.contextmanager
def _explained(shown: str) -> Iterator[None]:
    """Turn whatever the tracking store fails with into one message with a remedy."""
    apply_mlflow_defaults()
    try:
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise TrackingError(
            f"MLflow is not installed ({error}); install it (pip install mlflow) or leave tracking "
            "out: nothing else needs it"
        ) from error
    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, ImportError, OSError) as error:
        reason = redact(str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
        raise TrackingError(
            f"{shown}: the tracking store cannot be used: {reason[:300]}\nThe results are "
            "untouched; start the server or set POSSAM_TRACKING_URI to another one, then run this "
            "again."
        ) from error
