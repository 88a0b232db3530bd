"""Records of a run's folder: what drivers and jobs find again."""

from pathlib import Path

import pytest

from possam.launch.records import JobRecord, RunRecords, Submission
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file, write_json


@pytest.fixture
def records(tmp_path: Path) -> RunRecords:
    return RunRecords(tmp_path / "seed0")


RECORD = JobRecord(
    scale="smoke", run="r", seed=0, identity="i", job="", name="possam-r", source="/s"
)


def test_a_record_comes_back(records: RunRecords) -> None:
    assert records.read() is None
    one, other = (Submission(job=job, time="t", why="why") for job in "79")
    record = RECORD.with_submission(one, name="n", leader=".")
    record = record.with_submission(other, name="n", leader="../b")
    records.write(record)
    assert records.read() == record and record.job == "9"
    assert [each.job for each in record.submissions] == ["7", "9"]
    assert records.of_job().directory == records.directory / "../b"


def test_a_foreign_record_is_an_error(records: RunRecords) -> None:
    write_json(records.folder / "job.json", {"job": "3", "submissions": []})
    with pytest.raises(InputError, match=r"job\.json: not the record of a job"):
        records.read()


def test_a_final_failure_counts_then_the_first(
    records: RunRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert records.failure("5") is None
    clock = iter((20.0, 30.0, 5.0, 1.0))
    monkeypatch.setattr("possam.launch.records.time.time", lambda: next(clock))
    records.write_failure("5", 0, message="peer closed", final=False, code=1)
    records.write_failure("5", 1, message="the cause", final=True, code=2)
    records.write_failure("51", 0, message="another job", final=True, code=2)
    failure = records.failure("5")
    assert failure is not None and failure["message"] == "the cause"
    records.forget_failure("5", 1)
    records.write_failure("5", 1, message="the first", final=False, code=1)
    failure = records.failure("5")
    assert failure is not None and failure["message"] == "the first"


def trained(records: RunRecords, identity: str) -> None:
    records.directory.mkdir(exist_ok=True)
    weights = records.directory / "weights.safetensors"
    weights.write_bytes(b"weights")
    run = {"identity": identity, "weights_sha256": sha256_file(weights)}
    write_json(records.directory / "run.json", run)


def test_run_json_is_put_back_only_for_the_same_training(records: RunRecords) -> None:
    assert not records.finish("i")
    trained(records, "i")
    assert records.finish("i") and not records.finish("other")
    records.write_finished("5")
    run = read_json(records.directory / "run.json")
    (records.directory / "run.json").unlink()
    assert not records.finish("other")
    assert records.finish("i") and read_json(records.directory / "run.json") == run


def test_other_weights_are_not_taken_for_the_finished_ones(records: RunRecords) -> None:
    trained(records, "i")
    records.write_finished("5")
    (records.directory / "run.json").unlink()
    (records.directory / "weights.safetensors").write_bytes(b"others")
    assert not records.finish("i")
    assert not (records.directory / "run.json").exists()
