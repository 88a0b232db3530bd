"""Fixtures that several test folders share, and the order of the suite."""

from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support.parity_report import Parity, ParityPlugin

# No clock decides a test, and the same examples are tried everywhere.
hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

PIPELINE = "tests/whole/"
PINNED = ("tests/whole/test_dvc.py", "tests/whole/test_documents.py::test_storing")
"""Of them, those that share a copy whose results DVC has pinned."""
MEANWHILE = "tests/model/test_compilation.py"
"""What another process does while the first makes the pipeline's results for all."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-report", metavar="FILE", help="write the parity table as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ParityPlugin(config), "parity-report")


@pytest.fixture(scope="session")
def parity(pytestconfig: pytest.Config) -> Parity:
    """Comparisons with references, counted for the table (see tests/support/parity_report.py)."""
    plugin: ParityPlugin = pytestconfig.pluginmanager.get_plugin("parity-report")
    return plugin.fixture


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that take longest come first: the pipeline's, then full-size networks."""
    items.sort(
        key=lambda item: (
            not item.nodeid.startswith(PINNED),
            not item.nodeid.startswith(MEANWHILE),
            not item.nodeid.startswith(PIPELINE),
            item.get_closest_marker("full_size") is None,
        )
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests that share the pinned pipeline run in one process, in order.

    All other files are handed out one by one; of tests of full-size networks, which are named
    so, one function at a time: a file of them would keep one process busy for minutes.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(PINNED):
                return "pinned"
            return nodeid.split("[" if "full_size" in nodeid else "::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real samples beside the repository; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "samples").is_dir():
        pytest.skip("the real samples (../shared/samples) are not beside this checkout")
    return folder
