"""The tracking server is a view of the result files: same files, same view, in any history."""

import contextlib
import fcntl
import os
import shutil
import socket
import stat
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from possam.reporting import tracking
from possam.reporting.tracking import Summary, TrackingError, follow, ingest, redact, relocate
from possam.runtime.files import sha256_file
from tests.support.tracked_results import (
    PARAMETERS,
    START_MS,
    live,
    project,
    write_evaluation,
    write_figure,
    write_results,
    write_training,
)

pytestmark = pytest.mark.skipif(find_spec("mlflow") is None, reason="tracking is an extra")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def send(results: Path, uri: str, request: pytest.FixtureRequest) -> Callable[[], Summary]:
    """Ingest into an experiment of the test's own (making a database takes seconds)."""

    def call() -> Summary:
        name = request.node.name
        return ingest(results=results, project=project(), tracking_uri=uri, experiment=name)

    return call


def client(uri: str) -> Any:
    return tracking._connect(uri)


def active(uri: str, experiment: str) -> list[Any]:
    store = client(uri)
    return list(store.search_runs([store.get_experiment_by_name(experiment).experiment_id]))


def view(uri: str, experiment: str) -> dict[str, Any]:
    """Everything that a reader of the server sees, with run ids replaced by keys."""
    store, runs = client(uri), active(uri, experiment)
    keys = {run.info.run_id: run.data.tags[tracking.KEY] for run in runs}
    assert len(set(keys.values())) == len(runs), "a record is shown twice"
    shown = {}
    for run in runs:
        run_id = run.info.run_id
        history = {
            name: [(m.step, m.value, m.timestamp) for m in store.get_metric_history(run_id, name)]
            for name in run.data.metrics
        }
        shown[keys[run_id]] = {
            "params": run.data.params,
            "history": history,
            "tags": {
                name: keys.get(value, value).replace(f"/{run.info.experiment_id}/", "/ID/")
                for name, value in run.data.tags.items()
            },
            "artifacts": sorted(item.path for item in store.list_artifacts(run_id)),
            "status": run.info.status,
            "times": (run.info.start_time, run.info.end_time),
        }
    return shown


def test_everything_in_the_files_is_shown(send: Any, uri: str, results: Path) -> None:
    summary = send()
    shown = view(uri, summary.experiment)
    training, table = shown["training/full/seed3"], shown["table/table1"]
    evaluation = shown["evaluation/full/seed3/ade/trained"]
    assert sorted(shown) == sorted(summary.created) and len(shown) == 4
    assert training["history"]["loss"] == [
        (step, 1.0 / (step + 1), START_MS + 2000 * step) for step in range(0, 100, 20)
    ]
    assert training["history"]["terms.dice"][1][:2] == (20, 1 / 42)
    assert "lr" not in training["history"]
    assert training["history"]["final.trainable_parameters"][0][1] == 123
    assert training["history"]["final.skipped"][0][1] == 2
    assert training["params"]["model.queries"] == "30"
    assert training["params"]["templates"] == '["a {}", "{}"]'
    assert training["tags"]["possam.identity"] == "i" * 64
    assert training["tags"]["mlflow.source.git.commit"] == "c" * 40
    assert training["tags"]["possam.git_dirty"] == training["tags"]["possam.synthetic"] == "true"
    assert training["tags"]["possam.input.dataset"] == "d" * 64
    checkpoint = results / "runs/full/seed3/weights.safetensors"
    assert training["tags"]["possam.checkpoint"] == str(checkpoint) and checkpoint.is_file()
    assert training["artifacts"] == [
        *("config.yaml", "identity.json", "metrics.jsonl", "provenance.json", "run.json")
    ]
    assert training["status"] == "FINISHED" and training["times"] == (START_MS, START_MS + 60_000)
    assert {name: values[0][1] for name, values in evaluation["history"].items()} == {
        "pq": 20.5,
        "pq_low": 19.5,
        "pq_high": 21.5,
        "check.panopticapi_pq": 20.5,
        "geometric.pq": 10.25,
        "counts.images": 400.0,
    }
    assert evaluation["params"] == {
        "benchmark": "ade",
        "condition": "trained",
        "seed": "3",
        "inference.alpha": "0.4",
        "inference.ensemble": "mase",
        **{f"trained.{name}": value for name, value in training["params"].items()},
    }
    tags = evaluation["tags"]
    assert tags["possam.variant.geometric"] == '{"ensemble": "geometric"}'
    assert tags["possam.protocol.miou"] == "ground truth classes"
    assert tags["possam.protocol.geometric.miou"] == "union"
    assert tags["possam.protocol.class_names_hash"] == "n" * 64
    assert tags["possam.input.sam"] == "5" * 64
    assert evaluation["artifacts"] == ["config.yaml", "evaluation.json", "provenance.json"]
    assert (training["tags"]["possam.run"], training["tags"]["possam.seed"]) == ("full", "3")
    time = table["times"][1]
    assert table["history"] == {
        "Ours _B_/pq": [(0, 20.5, time)],
        "Ours _B_/pq_low": [(0, 19.5, time)],
    }
    assert table["artifacts"] == ["table1.csv", "table1.md"]


def test_a_figure_is_shown_with_its_files(send: Any, uri: str, results: Path) -> None:
    write_figure(results)
    summary = send()
    figure = view(uri, summary.experiment)["figure/bars"]
    assert figure["artifacts"] == ["bars.json", "bars.pdf", "bars.png", "config.yaml"]
    assert figure["params"] == {"kind": "seen_unseen", "run": "full"}
    assert figure["tags"]["mlflow.note.content"] == "Bars\n\nsynthetic"
    assert send().unchanged == summary.created


def test_runs_are_linked(send: Any, uri: str) -> None:
    shown = view(uri, send().experiment)
    for condition in ("trained", "untrained"):
        key = f"evaluation/full/seed3/ade/{condition}"
        assert shown[key]["tags"]["mlflow.parentRunId"] == "training/full/seed3"
        assert shown["table/table1"]["tags"][f"possam.link.{key}"] == key
    assert "mlflow.parentRunId" not in shown["training/full/seed3"]["tags"]


def test_a_table_leads_to_its_evaluations_and_trainings_and_to_no_other(
    send: Any, uri: str, results: Path
) -> None:
    write_training(results, run="other")
    write_evaluation(results, run="other")
    note = client(uri).get_run(send().runs["table/table1"]).data.tags["mlflow.note.content"]
    assert note.endswith((results / "table1.md").read_text())
    page = urlsplit(note[note.index("(#") + 2 : note.index(")")])
    experiment = page.path.split("/")[2]
    (wanted,) = parse_qs(page.query)["searchFilter"]
    assert {
        run.data.tags[tracking.KEY] for run in client(uri).search_runs([experiment], wanted)
    } == {
        "evaluation/full/seed3/ade/trained",
        "evaluation/full/seed3/ade/untrained",
        "training/full/seed3",
    }


def test_a_run_that_left_a_table_is_no_longer_shown_in_it(
    send: Any, uri: str, results: Path
) -> None:
    first = send()
    table = project().tables["table1"]
    smaller = project()
    smaller.tables["table1"] = table.model_copy(update={"controls": ()})
    arguments = {"results": results, "tracking_uri": uri, "experiment": first.experiment}
    assert ingest(project=smaller, **arguments).removed == 1, "the table itself"
    shown = view(uri, first.experiment)
    where = "possam.shown_in.table1"
    assert where not in shown["evaluation/full/seed3/ade/untrained"]["tags"]
    assert shown["evaluation/full/seed3/ade/trained"]["tags"][where] == "yes"


def test_two_ablations_differ_in_what_was_set_apart(send: Any, uri: str, results: Path) -> None:
    other = {**PARAMETERS, "model": {**PARAMETERS["model"], "pooling": "clip"}}
    write_training(results, run="no_ldp", parameters=other)
    write_evaluation(results, run="no_ldp", pq=7.0)
    shown = view(uri, send().experiment)

    def difference(one: str, two: str) -> dict[str, tuple[str | None, str | None]]:
        first, second = shown[one]["params"], shown[two]["params"]
        names = sorted({*first, *second})
        pairs = {name: (first.get(name), second.get(name)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    changed = ("ldp", "clip")
    assert difference("training/full/seed3", "training/no_ldp/seed3") == {"model.pooling": changed}
    evaluations = [f"evaluation/{run}/seed3/ade/trained" for run in ("full", "no_ldp")]
    assert difference(*evaluations) == {"trained.model.pooling": changed}


def test_config_is_the_nested_parameters(send: Any, uri: str, tmp_path: Path) -> None:
    run_id = send().runs["training/full/seed3"]
    path = client(uri).download_artifacts(run_id, tracking.CONFIG, str(tmp_path))
    assert yaml.safe_load(Path(path).read_text()) == PARAMETERS


def test_artifacts_lie_beside_the_database(send: Any, uri: str) -> None:
    run_id = send().runs["training/full/seed3"]
    folder = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
    assert [path.name for path in folder.glob(f"*/{run_id}/artifacts/run.json")] == ["run.json"]


def test_a_moved_checkout_keeps_its_pages(results: Path, tmp_path: Path) -> None:
    def ingested(folder: Path) -> tuple[Summary, str]:
        uri = f"sqlite:///{folder}/mlflow.db"
        return ingest(results=results, project=project(), tracking_uri=uri), uri

    old, new = tmp_path / "Max's folder", tmp_path / "renamed"
    before, _ = ingested(old)
    old.rename(new)
    after, uri = ingested(new)
    assert after.runs == before.runs and not after.created and not old.exists()
    location = client(uri).get_experiment_by_name(after.experiment).artifact_location
    assert location == (new / "mlartifacts" / after.experiment).as_uri()
    for key, run_id in after.runs.items():
        assert client(uri).list_artifacts(run_id), key
    copy = tmp_path / "copy"
    shutil.copytree(new, copy)
    relocate(f"sqlite:///{copy}/mlflow.db")  # what the pages do first
    run = client(f"sqlite:///{copy}/mlflow.db").get_run(after.runs["training/full/seed3"])
    assert run.info.artifact_uri.startswith((copy / "mlartifacts").as_uri())


def test_the_group_may_write_the_database(results: Path, tmp_path: Path) -> None:
    for path in results.rglob("*"):  # copies are as readable as the results
        path.chmod(0o775 if path.is_dir() else 0o664)
    before = os.umask(0o002)
    try:
        ingest(results=results, project=project(), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    finally:
        os.umask(before)
    made = [tmp_path / "mlflow.db", *(tmp_path / "mlartifacts").rglob("*")]
    assert len(made) > 1
    assert [path for path in made if not path.stat().st_mode & stat.S_IWGRP] == []


def test_twice_changes_nothing_and_results_stay_untouched(
    send: Any, uri: str, results: Path
) -> None:
    before = {path: sha256_file(path) for path in results.rglob("*") if path.is_file()}
    first = send()
    shown = view(uri, first.experiment)
    second = send()
    assert second.runs == first.runs and sorted(second.unchanged) == sorted(first.created)
    assert not second.created and not second.replaced and not second.removed
    assert view(uri, first.experiment) == shown
    assert before == {path: sha256_file(path) for path in results.rglob("*") if path.is_file()}


def test_changed_content_replaces_and_links_follow(send: Any, uri: str, results: Path) -> None:
    first = send()
    write_training(results, steps=3)
    second = send()
    assert second.replaced == ["training/full/seed3"] and second.removed == 1
    old, new = first.runs["training/full/seed3"], second.runs["training/full/seed3"]
    gone = client(uri).get_run(old)
    assert gone.info.lifecycle_stage == "deleted"
    assert gone.data.tags[tracking.SUPERSEDED] == new != old
    shown = view(uri, first.experiment)
    assert len(shown["training/full/seed3"]["history"]["loss"]) == 3
    assert (
        shown["evaluation/full/seed3/ade/trained"]["tags"]["mlflow.parentRunId"]
        == "training/full/seed3"
    )


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


class Mortal:
    """A client that dies before its n-th write."""

    def __init__(self, inner: Any, writes: int) -> None:
        self._inner, self._left = inner, writes

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._inner, name)
        if name.startswith(("search", "get", "list")):
            return function

        def write(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left < 0:
                raise Killed
            return function(*args, **kwargs)

        return write


@pytest.mark.parametrize("writes", [2, 6, 17])
def test_a_killed_ingester_is_reconciled(
    writes: int, send: Any, uri: str, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        connect = tracking._connect
        patch.setattr(tracking, "_connect", lambda address: Mortal(connect(address), writes))
        with pytest.raises(Killed):
            send()
    summary = send()
    shown = view(uri, summary.experiment)
    clean = ingest(
        results=results, project=project(), tracking_uri=uri, experiment=f"clean-{writes}"
    )
    assert shown == view(uri, clean.experiment)
    assert not send().created


@pytest.mark.parametrize("writes", [1, 3])
def test_killed_while_a_live_run_is_extended(
    writes: int,
    send: Any,
    uri: str,
    results: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    shutil.rmtree(results)
    training = contextlib.ExitStack()
    training.enter_context(live(write_training(results, steps=2, finished=False)))
    request.addfinalizer(training.close)
    run_id = send().runs["training/full/seed3"]
    write_training(results, steps=6, finished=False)
    with monkeypatch.context() as patch:
        connect = tracking._connect
        patch.setattr(tracking, "_connect", lambda address: Mortal(connect(address), writes))
        with pytest.raises(Killed):
            send()
    summary = send()
    assert (
        summary.extended == ["training/full/seed3"]
        and summary.runs["training/full/seed3"] == run_id
    )
    (shown,) = view(uri, summary.experiment).values()
    assert [step for step, _, _ in shown["history"]["loss"]] == list(range(0, 120, 20))
    assert shown["status"] == "RUNNING"


def test_live_run_shows_whole_lines_only_and_ends_finished(
    send: Any, uri: str, results: Path
) -> None:
    shutil.rmtree(results)
    folder = write_training(results, steps=2, finished=False)
    with open(folder / "metrics.jsonl", "a") as stream:
        stream.write('{"step": 40, "lo')
    with live(folder):
        (shown,) = view(uri, send().experiment).values()
    assert [step for step, _, _ in shown["history"]["loss"]] == [0, 20]
    assert (shown["status"], shown["times"][1]) == ("RUNNING", None)
    assert shown["params"]["model.pooling"] == "ldp", "known before the end"
    write_training(results, steps=4)
    (shown,) = view(uri, send().experiment).values()
    assert [step for step, _, _ in shown["history"]["loss"]] == [0, 20, 40, 60]
    assert shown["status"] == "FINISHED"


def test_a_killed_training_is_shown_as_killed_until_it_goes_on(
    send: Any, uri: str, results: Path
) -> None:
    shutil.rmtree(results)
    folder = write_training(results, steps=3, finished=False)
    with live(folder):
        name = send().experiment
        assert [run["status"] for run in view(uri, name).values()] == ["RUNNING"]
    assert send().extended == ["training/full/seed3"], "the same run in MLflow"
    (shown,) = view(uri, name).values()
    started, ended = shown["times"]
    assert shown["status"] == "KILLED" and ended - started == 2000 * 40, "the last point's time"
    assert send().unchanged == ["training/full/seed3"]
    write_training(results, steps=4, finished=False)
    with live(folder):
        send()
        (shown,) = view(uri, name).values()
        assert (shown["status"], shown["times"][1]) == ("RUNNING", None)
    write_training(results, steps=5)
    send()
    (shown,) = view(uri, name).values()
    assert shown["status"] == "FINISHED" and len(shown["history"]["loss"]) == 5


def test_follow_ends_where_nothing_trains(results: Path, uri: str) -> None:
    write_training(results, finished=False, run="killed")

    def sleep(seconds: float) -> None:
        pytest.fail("waits for a training that was killed")

    summary = follow(
        results=results, project=project(), tracking_uri=uri, experiment="dead", sleep=sleep
    )
    assert "training/killed/seed3" in summary.runs


def test_follow_outlives_a_dead_server_and_ends_with_the_run(
    results: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(results)
    training = contextlib.ExitStack()
    training.enter_context(live(write_training(results, steps=1, finished=False)))
    real, rounds = tracking.ingest, list[float]()

    def flaky(**arguments: Any) -> Summary:
        if len(rounds) == 1:
            raise TrackingError("server is down")
        return real(**arguments)

    def sleep(seconds: float) -> None:
        rounds.append(seconds)
        assert len(rounds) < 5
        write_training(results, steps=1 + len(rounds), finished=len(rounds) == 3)

    monkeypatch.setattr(tracking, "ingest", flaky)
    summary = follow(
        results=results,
        project=project(),
        tracking_uri=uri,
        experiment="followed",
        interval=7,
        sleep=sleep,
    )
    assert rounds == [7, 7, 7] and "server is down" in capsys.readouterr().err
    (shown,) = view(uri, summary.experiment).values()
    assert shown["status"] == "FINISHED" and len(shown["history"]["loss"]) == 4


def test_foreign_runs_of_the_experiment_stay(send: Any, uri: str) -> None:
    summary = send()
    store = client(uri)
    experiment = store.get_experiment_by_name(summary.experiment).experiment_id
    foreign = store.create_run(experiment, tags={"mine": "1"}).info.run_id
    send()
    assert store.get_run(foreign).info.lifecycle_stage == "active"


def test_many_points_are_sent_in_batches(send: Any, uri: str, results: Path) -> None:
    shutil.rmtree(results)
    write_training(results, steps=1100)
    (shown,) = view(uri, send().experiment).values()
    assert len(shown["history"]["loss"]) == len(shown["history"]["terms.dice"]) == 1100


def test_a_second_ingester_waits_and_then_says_so(results: Path, tmp_path: Path) -> None:
    database = tmp_path / "other.db"
    with open(tmp_path / ".other.db.lock", "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(TrackingError, match="another ingester"):
            ingest(
                results=results,
                project=project(),
                tracking_uri=f"sqlite:///{database}",
                lock_timeout=0.05,
            )
    assert not database.exists()


def test_dead_server_is_one_clear_message(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"http://user:secret@127.0.0.1:{taken.getsockname()[1]}"
        before = {path: sha256_file(path) for path in results.rglob("*.*") if path.is_file()}
        with pytest.raises(TrackingError) as caught:
            ingest(results=results, project=project(), tracking_uri=address)
    assert "results are untouched" in str(caught.value)
    assert "POSSAM_TRACKING_URI" in str(caught.value) and "secret" not in str(caught.value)
    assert all(sha256_file(path) == digest for path, digest in before.items())


def test_unusable_addresses_are_refused(results: Path, tmp_path: Path) -> None:
    for address in ("mlruns", "http://", ""):
        with pytest.raises(TrackingError, match="not an address"):
            ingest(results=results, project=project(), tracking_uri=address)
    broken = tmp_path / "broken.db"
    broken.write_text("this is no database " * 100)
    with pytest.raises(TrackingError, match="untouched"):
        ingest(results=results, project=project(), tracking_uri=f"sqlite:///{broken}")


def test_deleted_experiment_is_explained(send: Any, uri: str) -> None:
    store = client(uri)
    name = send().experiment
    store.delete_experiment(store.get_experiment_by_name(name).experiment_id)
    with pytest.raises(TrackingError, match="was deleted; restore it"):
        send()


def test_redact_removes_passwords_only() -> None:
    assert redact("postgresql://me:pw@db/x") == "postgresql://***@db/x"
    assert redact("sqlite:///a/b.db") == "sqlite:///a/b.db"
