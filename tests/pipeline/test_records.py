"""Snakemake's records follow the files that they are of, whoever brings these files back."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from possam.pipeline.records import METADATA, settle_records

RUN = Path("results/mini/runs/a/seed0/run.json")
NAME = "cmVzdWx0cy9taW5pL3J1bnMvYS9zZWVkMC9ydW4uanNvbg=="
"""The base64 of :data:`RUN`, as Snakemake names its record."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    METADATA.mkdir(parents=True)


def write(content: str, *, mtime: float, path: Path = RUN) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (mtime, mtime))


def note(params: str, endtime: float, name: str = NAME) -> dict[str, Any]:
    """Snakemake's record of a file that it made at ``endtime``."""
    record = {"params": [params], "endtime": endtime}
    (METADATA / name).write_text(json.dumps(record))
    return record


def noted(name: str = NAME) -> Any:
    return json.loads((METADATA / name).read_text())


def copied() -> Any:
    return json.loads(RUN.with_suffix(".snakemake").read_text())


def test_a_result_made_here_gets_a_copy_of_its_record() -> None:
    write("first", mtime=100.0)
    first = note("1", 100.0)
    settle_records()
    assert copied()["record"] == first
    write("second", mtime=200.0)
    second = note("2", 200.0)
    settle_records()
    assert copied()["record"] == second and noted() == second
    # The same content, made again by other parameters: the old copy must not win.
    write("second", mtime=300.0)
    third = note("3", 300.0)
    settle_records()
    assert copied()["record"] == third and noted() == third


def test_a_result_that_was_brought_back_brings_its_record() -> None:
    write("first", mtime=100.0)
    first = note("1", 100.0)
    settle_records()
    copy = RUN.with_suffix(".snakemake").read_text()
    write("second", mtime=200.0)
    note("2", 200.0)
    settle_records()
    write("first", mtime=300.0)
    RUN.with_suffix(".snakemake").write_text(copy)
    settle_records()
    assert noted() == first
    assert RUN.stat().st_mtime == pytest.approx(100.0), "older than what was made from it"
    (METADATA / NAME).unlink()  # as in a clone
    settle_records()
    assert noted() == first


def test_a_touch_changes_nothing() -> None:
    write("first", mtime=100.0)
    first = note("1", 100.0)
    settle_records()
    os.utime(RUN)
    settle_records()
    assert noted() == first and copied()["record"] == first


def test_a_record_that_was_half_written_is_none() -> None:
    write("first", mtime=100.0)
    (METADATA / NAME).write_text('{"params": [')
    settle_records()
    assert not RUN.with_suffix(".snakemake").exists()


def test_all_files_of_a_job_get_the_record_back() -> None:
    names = {
        "csv": "cmVzdWx0cy90YWJsZTEuY3N2",
        "md": "cmVzdWx0cy90YWJsZTEubWQ=",
        "tex": "cmVzdWx0cy90YWJsZTEudGV4",
        "json": "cmVzdWx0cy90YWJsZTEuanNvbg==",
        "metrics.json": "cmVzdWx0cy90YWJsZTEubWV0cmljcy5qc29u",
    }
    for suffix, name in names.items():
        write(suffix, mtime=100.0, path=Path(f"results/table1.{suffix}"))
        note("1", 100.0, name)
    settle_records()
    for suffix in names:
        os.utime(f"results/table1.{suffix}")
    for name in names.values():
        (METADATA / name).unlink()
    settle_records()
    assert [noted(name)["params"] for name in names.values()] == [["1"]] * 5


def test_what_is_not_stored_has_no_copy() -> None:
    path = Path("data/mini/features/clip/coco_train/manifest.json")
    write("{}", mtime=100.0, path=path)
    note("1", 100.0, "ZGF0YS9taW5pL2ZlYXR1cmVzL2NsaXAvY29jb190cmFpbi9tYW5pZmVzdC5qc29u")
    settle_records()
    assert [file.name for file in path.parent.iterdir()] == ["manifest.json"]
