"""``possam keep``: git's copies of a finished study."""

import json
from pathlib import Path

import pytest

from possam.params.layout import Layout
from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.keep import SUFFIXES, keep
from possam.stages.report import job_records

PARAMS = Path(__file__).parents[2] / "params"


def provenance(*, commit: str = "a" * 40, dirty: bool | None = False, seconds: float = 36.0) -> str:
    return json.dumps(
        {
            "git": {"commit": commit, "dirty": dirty},
            "wall_time_s": seconds,
            "peak_memory_mib": 700.4,
        }
    )


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """Files of a finished study, in the working directory."""
    monkeypatch.chdir(tmp_path)
    project = Project("smoke", folder=PARAMS)
    layout = Layout(project)
    for name in project.tables:
        for suffix in SUFFIXES:
            path = layout.table(name).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name}{suffix}")
    layout.report.parent.mkdir(parents=True)
    layout.report.write_text("<p>page</p>")
    for path in job_records(project, layout).values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(provenance())
    return layout


def test_tables_and_page_are_copied_and_summed_up(study: Layout) -> None:
    jobs = job_records(study.project, study)
    next(iter(jobs.values())).write_text(provenance(commit="b" * 40, seconds=3636.0))
    keep(study.project)
    for name in study.project.tables:
        for suffix in SUFFIXES:
            copy = Path("results/smoke/measured") / f"{name}{suffix}"
            assert copy.read_text() == f"{name}{suffix}"
    assert Path("reports/smoke/measured.html").read_text() == "<p>page</p>"
    summary = json.loads(Path("results/smoke/measured/study.json").read_text())
    assert summary == {
        "scale": "smoke",
        "synthetic": True,
        "seeds": [0],
        "jobs": len(jobs),
        "commits": ["a" * 40, "b" * 40],
        "hours": round((len(jobs) - 1) * 0.01 + 1.01, 2),
        "largest_job_mib": 700,
    }


def test_keeping_again_replaces_the_copies(study: Layout) -> None:
    keep(study.project)
    study.table("table1").write_text("new")
    keep(study.project)
    assert Path("results/smoke/measured/table1.csv").read_text() == "new"


@pytest.mark.parametrize("dirty", [True, None])
def test_results_of_no_commit_are_refused(study: Layout, dirty: bool | None) -> None:
    path = list(job_records(study.project, study).values())[3]
    path.write_text(provenance(dirty=dirty))
    with pytest.raises(InputError, match=r"git\.dirty"):
        keep(study.project)
    assert not Path("results/smoke/measured").exists()
    assert not Path("reports/smoke/measured.html").exists()


@pytest.mark.parametrize("name", ["table4.md", "../../reports/smoke/report.html"])
def test_an_unfinished_study_is_refused(study: Layout, name: str) -> None:
    (study.results / name).unlink()
    with pytest.raises(InputError, match="make study SCALE=smoke"):
        keep(study.project)
    assert not Path("results/smoke/measured").exists()
