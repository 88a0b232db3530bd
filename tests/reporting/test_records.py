"""Reading result files for the tracking server."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from possam.reporting.records import flatten, read_records
from possam.reporting.tracking import ingest
from possam.runtime.errors import InputError
from tests.support.tracked_results import project, write_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "runs/full/seed3/metrics.jsonl",
            '{"step": 1}\n{"step": 2',
            r"metrics\.jsonl: the last line",
        ),
        (
            "runs/full/seed3/metrics.jsonl",
            '{"step": 1}\nnonsense\n',
            r"metrics\.jsonl:2: not valid JSON",
        ),
        ("runs/full/seed3/metrics.jsonl", '{"loss": 1}\n', r"metrics\.jsonl:1: .*'step'"),
        ("runs/full/seed3/run.json", "[1]", r"run\.json: a JSON object"),
        (
            "evaluations/full/seed3/ade/trained/evaluation.json",
            "{}",
            r"evaluation\.json: variants: .*'default'",
        ),
        (
            "evaluations/full/seed3/ade/trained/evaluation.json",
            '{"variants": {"default": {}}}',
            r"evaluation\.json: variants\.default\.metrics",
        ),
    ],
)
def test_malformed_results_are_named_before_anything_is_sent(
    file: str, text: str, message: str, results: Path, tmp_path: Path
) -> None:
    (results / file).write_text(text)
    database = tmp_path / "never.db"
    with pytest.raises(InputError, match=message):
        ingest(results=results, project=project(), tracking_uri=f"sqlite:///{database}")
    assert not database.exists()


def test_folders_of_killed_stages_are_no_records(results: Path) -> None:
    (results / "runs" / "begun" / "seed0" / "checkpoints").mkdir(parents=True)
    (results / "evaluations/full/seed3/ade/shuffled_names").mkdir(parents=True)
    keys = [record.key for record in read_records(results, project())]
    assert keys == [
        "training/full/seed3",
        "evaluation/full/seed3/ade/trained",
        "evaluation/full/seed3/ade/untrained",
        "table/table1",
    ]


names = st.text("abc_", min_size=1, max_size=3)
leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5)


@given(st.dictionaries(names, leaves | st.dictionaries(names, leaves, max_size=3), max_size=3))
def test_flatten_keeps_every_leaf(value: dict[str, Any]) -> None:
    def count(item: Any) -> int:
        return sum(map(count, item.values())) if isinstance(item, dict) else 1

    flat = flatten(value)
    assert len(flat) == count(value)
    for key, text in flat.items():
        item: Any = value
        for part in key.split("."):
            item = item[part]
        assert text == (item if isinstance(item, str) else json.dumps(item))
