"""Scoring in several processes: the same results, and the image at fault named."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from possam.datasets.format import ConvertedDataset
from possam.evaluation import score
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.score import measure_predictions
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.pools import in_chunks

LOOPS = "possam.evaluation.kernels"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score, "_CHUNK", 2)


@pytest.fixture
def no_fork_server() -> Iterator[None]:
    """As in a new process: the next pool decides what the fork server imports."""
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def loaded(module: str, items: Sequence[int]) -> bool:
    return module in sys.modules


def measure(
    dataset: ConvertedDataset, settings: EvaluationOptions, predictions: Path, workers: int
) -> str:
    statistics, found = measure_predictions(
        dataset=dataset, predictions=predictions, evaluation=settings, workers=workers
    )
    measured = {name: values.tolist() for name, values in statistics.metrics().items()}
    return json.dumps([found, measured])


def test_any_number_of_workers_scores_alike(
    small_chunks: None,
    dataset: ConvertedDataset,
    written: Path,
    labels: Path,
    edit: Callable[..., None],
    settings_small: EvaluationOptions,
) -> None:
    def change(content: dict[str, Any]) -> None:
        for annotation in content["annotations"][::2]:
            segments = annotation["segments_info"]
            segments[0]["category_id"] = segments[-1]["category_id"]

    edit(change)
    results = partial(measure, dataset, settings_small)
    for predictions in (written, labels):
        one, two, three = (results(predictions, workers) for workers in (1, 2, 3))
        assert one == two == three
    found = json.loads(results(written, 2))[0]
    assert 0 < found["metrics"]["pq"] < 100


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_is_named_by_any_number_of_workers(
    small_chunks: None,
    dataset: ConvertedDataset,
    written: Path,
    settings_small: EvaluationOptions,
    workers: int,
) -> None:
    name = read_json(written)["annotations"][3]["file_name"]
    bad = written.with_suffix("") / name
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(InputError, match=rf"{name}: not a readable image .*; write it again"):
        measure_predictions(
            dataset=dataset, predictions=written, evaluation=settings_small, workers=workers
        )


def test_workers_find_the_compiled_loops_loaded(no_fork_server: None) -> None:
    job = partial(loaded, LOOPS)
    found = list(in_chunks(job, range(4), workers=2, chunk=1, preload=score._PRELOAD))
    assert found == [(1, True)] * 4


def test_a_process_that_converted_before_scores_alike(
    no_fork_server: None,
    small_chunks: None,
    dataset: ConvertedDataset,
    written: Path,
    settings_small: EvaluationOptions,
) -> None:
    """The fork server keeps the modules of its first pool: workers that score load their own."""
    conversion, job = "possam.datasets.conversion", partial(loaded, LOOPS)
    list(in_chunks(job, range(4), workers=2, chunk=1, preload=conversion))
    assert measure(dataset, settings_small, written, 2) == measure(
        dataset, settings_small, written, 1
    )
    found = list(in_chunks(job, range(4), workers=2, chunk=1, preload=score._PRELOAD))
    assert found == [(1, False)] * 4, "the server was not the first pool's"
