"""MLflow's pages as a person sees them, in a headless browser."""

import html
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from possam.runtime.files import read_json
from tests.whole.conftest import Workspace, free_port, served

pytestmark = pytest.mark.pipeline

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--window-size=1500,1600", "--virtual-time-budget=60000", "--dump-dom"),
)


@pytest.fixture(scope="module")
def browser() -> str:
    found = [path for name in BROWSERS if (path := shutil.which(name))]
    if not found and not os.environ.get("CI"):
        pytest.skip(f"no browser here ({', '.join(BROWSERS)})")
    assert found, "continuous integration installs a browser"
    return found[0]


@pytest.fixture(scope="module")
def server(finished: Workspace, browser: str) -> Iterator[str]:
    port = free_port()
    with served(finished, "possam", "ui", "--port", str(port), port=port) as address:
        yield address


@pytest.fixture(scope="module")
def runs(finished: Workspace) -> dict[str, str]:
    """MLflow's run ids by our keys."""
    return dict(read_json(finished.folder / "results/smoke/table1.tracking.json")["runs"])


def client(workspace: Workspace) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{workspace.folder}/mlflow.db")


def page(browser: str, profile: Path, address: str, *, until: str) -> str:
    """The page's HTML when it shows ``until``."""
    for attempt in range(4):
        command = [browser, *FLAGS, f"--user-data-dir={profile / str(attempt)}", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        if until in done.stdout:
            return done.stdout
    raise AssertionError(f"{address}: {until!r} is not shown: {done.stdout[-2000:]}")


def texts(source: str) -> list[str]:
    """The texts of a page, one per element."""
    visible = re.sub(r"<(script|style|svg)\b.*?</\1>", "", source, flags=re.DOTALL)
    found = (html.unescape(text).strip() for text in re.split(r"<[^>]+>", visible))
    return [text for text in found if text]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("training/{}/seed0", {"sam": ("b", "l")}),
        # B is the reference of tables that show its error budget.
        (
            "evaluation/{}/seed0/ade20k/trained",
            {"trained.sam": ("b", "l"), "budget": ("default", "null")},
        ),
    ],
    ids=("training", "evaluation"),
)
def test_comparing_two_runs_shows_exactly_the_parameters_that_differ(
    kind: str,
    changed: dict[str, tuple[str, str]],
    finished: Workspace,
    browser: str,
    server: str,
    runs: dict[str, str],
    tmp_path: Path,
) -> None:
    pair = [runs[kind.format(run)] for run in ("possam_b_coco", "possam_l_coco")]
    info = client(finished).get_run(pair[0])
    listed = ",".join(f'"{run}"' for run in pair)
    address = (
        f"{server}/#/compare-runs?runs=[{listed}]&experiments=[%22{info.info.experiment_id}%22]"
    )
    words = texts(page(browser, tmp_path, address.replace('"', "%22"), until="Show diff only"))
    start = words.index("Show diff only") + 1
    cells = words[start : words.index("Metrics", start)]
    rows = {name: (one, two) for name, one, two in zip(*[iter(cells)] * 3, strict=True)}
    assert set(rows) == set(info.data.params)
    assert {name: row for name, row in rows.items() if row[0] != row[1]} == changed


def test_a_table_s_page_leads_to_its_evaluations_below_their_trainings(
    finished: Workspace, browser: str, server: str, runs: dict[str, str], tmp_path: Path
) -> None:
    table = client(finished).get_run(runs["table/table1"])
    address = f"{server}/#/experiments/{table.info.experiment_id}/runs/{table.info.run_id}"
    link = "Evaluations and trainings behind this table"
    source = page(browser, tmp_path / "table", address, until=link)
    assert {"PosSAM _H_/coco_ade_pq", "MaskCLIP/coco_ade_pq"} <= set(texts(source))
    (target,) = re.findall(rf'<a [^>]*href="(#[^"]+)"[^>]*>{link}', source)
    found = f"{server}/{html.unescape(target)}"
    words = texts(page(browser, tmp_path / "list", found, until="matching runs"))
    behind = [key for key in runs if key.startswith(("training/", "evaluation/"))]
    assert words[words.index("matching runs") - 1] == str(len(behind)), "only table 1 was made"
    shown = {word for word in words if word.startswith(("training/", "evaluation/", "table/"))}
    top = {key for key in behind if key.startswith("training/") or key.endswith("/training_free")}
    assert shown == top, "the others lie below"
