"""The parity table itself: what counts as an error, and that a broken part fails."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.parity_report import PARTS, Parity, relative_error

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small suites below import the plugin from this repository."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))


@pytest.mark.parametrize(
    ("ours", "theirs", "error"),
    [
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]), 0.5),
        (torch.tensor([0.0, 1e-3]), np.array([0.0, 0.0]), float("inf")),
        (torch.zeros(2), torch.zeros(2), 0.0),
        (torch.zeros(2), torch.zeros(3), float("inf")),
        (float("nan"), float("nan"), 0.0),
        (float("nan"), 1.0, float("inf")),
        (1.0, float("inf"), float("inf")),
        ([1, 2.0], [1, 2.5], 0.2),
        ([1], [1, 2], float("inf")),
        ({"a": 1.0, "b": 3}, {"a": 1.0, "b": 2}, 0.5),
        ({"a": 1.0}, {"b": 1.0}, float("inf")),
        ("cat", "cat", 0.0),
        ("cat", "dog", float("inf")),
        (torch.zeros(0), torch.zeros(0), 0.0),
        (2**60 + 1, 2**60, 1 / 2**60),
    ],
)
def test_relative_error(ours: object, theirs: object, error: float) -> None:
    assert relative_error(ours, theirs) == pytest.approx(error)


def test_a_comparison_needs_a_part_and_keeps_its_bound() -> None:
    parity = Parity()
    with pytest.raises(AssertionError, match="mark the test"):
        parity.equal(1, 1)
    parity.part = "miou"
    parity.close(1.0, 1.1, bound=0.2)
    with pytest.raises(AssertionError, match="exceeds"):
        parity.equal(1.0, 1.0001)
    assert parity.tally.cases == 2 and parity.tally.bound == 0.2


CONFTEST = """
import pytest
from tests.support.parity_report import Parity, ParityPlugin

def pytest_addoption(parser):
    parser.addoption("--parity-report")

def pytest_configure(config):
    config.addinivalue_line("markers", "parity(part): a part")
    config.pluginmanager.register(ParityPlugin(config), "parity-report")

@pytest.fixture(scope="session")
def parity(pytestconfig):
    return pytestconfig.pluginmanager.get_plugin("parity-report").fixture
"""

SUITE = """
import pytest

@pytest.mark.parity("miou")
@pytest.mark.parametrize("value", [1.0, 1.5])
def test_pair(value, parity):
    parity.close(value, 1.0, bound={bound})
    parity.close(2.0, 2.0, bound={bound})

def test_something_else():
    pass
"""


@pytest.mark.parametrize("processes", [0, 2])
def test_table_is_written_when_all_parts_hold(pytester: pytest.Pytester, processes: int) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE.format(bound=0.5))
    result = pytester.runpytest_subprocess("-n", str(processes), "--parity-report", "out/parity.md")
    result.assert_outcomes(passed=3)
    text = (pytester.path / "out" / "parity.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| mIoU "))
    assert [cell.strip() for cell in row.split("|")[3:6]] == ["4", "5.0e-01", "0.5"]
    assert f"| {PARTS['coco'].title} | upstream sample | not run |" in text
    result.stdout.fnmatch_lines(["mIoU*torchmetrics*4*5.0e-01*0.5"])


def test_no_table_when_a_part_fails(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE.format(bound=0.4))
    result = pytester.runpytest_subprocess("--parity-report", "parity.md")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*miou: relative error 0.5 exceeds 0.4*"])
    assert not (pytester.path / "parity.md").exists()


def test_an_unknown_part_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile("import pytest\n@pytest.mark.parity('moiu')\ndef test_x(): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*valid parts: sam_encoder*"])
