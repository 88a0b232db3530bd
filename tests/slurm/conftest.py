"""The cluster, a project that the local profile has finished, and the list of faults at the end."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import Cluster, running, why_not
from tests.whole.conftest import Workspace, copy_project

TABLE = "results/smoke/table1.csv"
_FAULTS = pytest.StashKey[list[tuple[str, str, str]]]()


class ClusterWorkspace(Workspace):
    """A project whose commands talk to ``cluster``."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        super().__init__(folder)
        self.cluster = cluster

    def environment(self) -> dict[str, str]:
        own = super().environment()
        path = os.pathsep.join([str(self.cluster.commands), own["PATH"]])
        return {**own, **self.cluster.environment, "PATH": path}


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """Change a YAML file; returns what it was."""
    before = path.read_text()
    values = yaml.safe_load(before)
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return before


def small_project(folder: Path) -> Path:
    """A copy of the project whose table has one row of two trainings: one of cached features, one
    of images that workers read, and that the towers encode, while it trains.
    """
    workspace = copy_project(folder)

    def one_row(tables: dict[str, Any]) -> None:
        table = tables["table1"]
        for key in ("reference", "controls", "budget"):
            del table[key]
        table["rows"] = [row for row in table["rows"] if row.get("published", True)]
        for row in table["rows"]:
            if row["name"] != "PosSAM (B)":
                row.pop("cells", None)

    def live(runs: dict[str, Any]) -> None:
        runs["possam_b_ade20k"]["training"] = {"feature_cache": False, "workers": 1}

    edit(workspace.folder / "params/tables.yaml", one_row)
    edit(workspace.folder / "params/runs.yaml", live)
    return workspace.folder


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with running(tmp_path_factory.mktemp("cluster") / "slurm") as started:
        yield started


@pytest.fixture(scope="session")
def local(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The smoke pipeline without SLURM."""
    workspace = Workspace(small_project(tmp_path_factory.mktemp("local")))
    workspace.snakemake(TABLE)
    return workspace


@pytest.fixture(scope="session")
def copied(
    local: Workspace, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> ClusterWorkspace:
    """The finished project again, to be edited; its trainings are removed."""
    folder = tmp_path_factory.mktemp("faults") / "project"
    shutil.copytree(local.folder, folder, symlinks=True)
    shutil.rmtree(folder / "results")
    return ClusterWorkspace(folder, cluster)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FAULTS] = []


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[str, str, str], None]:
    """Put a fault, what followed and what was lost on the list that the run ends with."""
    return lambda *row: pytestconfig.stash[_FAULTS].append(row)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if rows := config.stash[_FAULTS]:
        terminalreporter.section("faults")
        rows = [("fault", "what followed", "lost"), *rows]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        for row in rows:
            terminalreporter.write_line(
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            )
