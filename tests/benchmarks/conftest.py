"""What all tests of the benchmarks share."""

import gc
from collections.abc import Iterator

import pytest

from benchmarks import harness
from tests.support.measured import Clock


@pytest.fixture(scope="package", autouse=True)
def quick_collection() -> Iterator[None]:
    """The harness collects garbage before every call; what other tests left need not be seen."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(harness.time, "perf_counter", found)
    return found
