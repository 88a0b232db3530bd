"""``possam keep``: git's copies of a finished study, seed by seed; ``possam compare`` with them."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from possam.params.layout import Layout
from possam.params.project import Project
from possam.reporting.kept import chance, judge
from possam.reporting.measurement import Comparisons
from possam.reporting.tables import build_table
from possam.runtime.errors import InputError
from possam.runtime.files import write_json
from possam.stages.keep import keep
from possam.stages.report import job_records
from tests.support.table_fakes import measured

PARAMS = Path(__file__).parents[2] / "params"
KEPT = Path("results/smoke/measured")
PAGE = Path("reports/smoke/measured.html")


def provenance(
    *, commit: str = "a" * 40, dirty: bool | None = False, seconds: float = 36.0, cpu: str = "EPYC"
) -> dict[str, Any]:
    return {
        "git": {"commit": commit, "dirty": dirty},
        "wall_time_s": seconds,
        "peak_memory_mib": 700.4,
        "hardware": {"cpu": cpu, "cores": 2, "memory_gib": 8.0, "gpus": []},
    }


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """``study(seed, cpu)``: files of a finished study of one seed in the working directory.

    Every trained value is the number of the seed higher than that of seed 0. Also writes the
    evaluations of Table 3.
    """
    monkeypatch.chdir(tmp_path)

    def call(seed: int = 0, cpu: str = "EPYC") -> Project:
        project = copy.copy(Project("smoke", folder=PARAMS))
        project.scale = project.scale.model_copy(update={"seeds": (seed,)})
        layout = Layout(project)
        for name in project.tables:
            out = layout.table(name)
            out.parent.mkdir(parents=True, exist_ok=True)
            build_table(project, name, measured(project, name), Comparisons(), out=out)
        for path in job_records(project, layout).values():
            write_json(path, provenance(cpu=cpu))
        for origin, found in measured(project, "table3").items():
            (key,) = origin.evaluations((seed,))
            path = layout.evaluation(*key) / "evaluation.json"
            content = dict(found.evaluations[0])
            if path.is_file():
                content["variants"] |= json.loads(path.read_text())["variants"]
            write_json(path, content)
        return project

    return call


def kept(table: str = "table3") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KEPT / f"{table}.json").read_text())
    return found


def cell(card: dict[str, Any], row: str = "PosSAM", column: str = "pq") -> dict[str, Any]:
    (found,) = (one["cells"][column] for one in card["rows"] if one["row"] == row)
    return dict(found)


def summary() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((KEPT / "study.json").read_text())
    return found


def test_one_seed_is_kept_as_it_is(study: Callable[..., Project]) -> None:
    project = study()
    jobs = job_records(project, Layout(project))
    first = next(iter(jobs.values()))
    write_json(first, provenance(commit="b" * 40, seconds=3636.0))
    keep(project)
    for name in project.tables:
        own = json.loads(Layout(project).table(name).with_suffix(".json").read_text())
        assert {key: kept(name)[key] for key in own} == own
        csv = Layout(project).table(name)
        assert (KEPT / csv.name).read_text() == csv.read_text()
    assert summary() == {
        "scale": "smoke",
        "synthetic": True,
        "seeds": [0],
        "jobs": len(jobs),
        "commits": ["a" * 40, "b" * 40],
        "hours": round((len(jobs) - 1) * 0.01 + 1.01, 2),
        "largest_job_mib": 700,
        "processors": ["EPYC"],
        "processors_by_seed": {"0": ["EPYC"]},
    }
    assert "Made on EPYC." in (KEPT / "table3.md").read_text()
    page = PAGE.read_text()
    assert "train possam_b_coco, seed 0" in page and "EPYC, 2 cores" in page


def test_a_seed_of_another_machine_is_added(study: Callable[..., Project]) -> None:
    keep(study(0))
    one = cell(kept())
    keep(study(3, cpu="Xeon"))
    both = cell(kept())
    assert summary()["seeds"] == kept()["seeds"] == [0, 3]
    assert summary()["processors_by_seed"] == {"0": ["EPYC"], "3": ["Xeon"]}
    assert both["value"] == pytest.approx(one["value"] + 1.5)
    assert both["std"] == pytest.approx(3 / 2**0.5), "of two values that are 3 apart"
    assert (both["low"], both["high"]) == pytest.approx((one["low"] + 1.5, one["high"] + 1.5))
    assert both["difference"] == pytest.approx(both["value"] - both["published"])
    text = (KEPT / "table3.md").read_text()
    assert "different processors (seed 0: EPYC; seed 3: Xeon)" in text
    assert f"{both['value']:.1f} ± 2.1" in text and "over 2 trainings (seeds 0, 3)" in text
    floor = cell(kept(), "SAM + CLIP")
    assert floor == cell(json.loads((KEPT / "seed0/table3.json").read_text()), "SAM + CLIP")
    page = PAGE.read_text()
    assert "train possam_h_coco, seed 0" in page and "train possam_h_coco, seed 3" in page
    line = next(iter(kept()["budget"]))["lines"]["oracle_labels"]["pq"]
    assert line["std"] == pytest.approx(3 / 2**0.5)


def test_a_seed_that_is_kept_again_is_replaced(study: Callable[..., Project]) -> None:
    keep(study(0))
    keep(study(3))
    keep(study(3, cpu="Xeon"))
    assert summary()["processors_by_seed"] == {"0": ["EPYC"], "3": ["Xeon"]}
    keep(study(3), anew=True)
    assert summary()["seeds"] == [3] and not (KEPT / "seed0").exists()


def test_a_seed_of_other_code_is_refused(study: Callable[..., Project]) -> None:
    keep(study(0))
    before = {path: path.read_bytes() for path in KEPT.rglob("*") if path.is_file()}
    project = study(3)
    path = Layout(project).table("table3").with_suffix(".json")
    card = json.loads(path.read_text())
    (key,) = (key for key in card["evaluations"] if key.startswith("fcclip_coco"))
    card["evaluations"][key]["code"] = "changed"
    write_json(path, card)
    with pytest.raises(InputError, match=r"seed 3 is of another study.*fcclip_coco.*--anew"):
        keep(project)
    assert {path: path.read_bytes() for path in KEPT.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("dirty", [True, None])
def test_results_of_no_commit_are_refused(
    study: Callable[..., Project], dirty: bool | None
) -> None:
    project = study()
    path = list(job_records(project, Layout(project)).values())[3]
    write_json(path, provenance(dirty=dirty))
    with pytest.raises(InputError, match=r"git\.dirty"):
        keep(project)
    assert not KEPT.exists() and not PAGE.exists()


def test_an_unfinished_study_is_refused(study: Callable[..., Project]) -> None:
    project = study()
    list(job_records(project, Layout(project)).values())[5].unlink()
    with pytest.raises(InputError, match="with seed 0: make study SCALE=smoke"):
        keep(project)
    with pytest.raises(InputError, match="unknown seed '7'"):
        keep(project, seed=7)
    assert not KEPT.exists()


def test_chance_by_hand() -> None:
    # Variances 2 (two values) and none: 2 of 1 degree of freedom; times 1/2 + 1; t is 12.706.
    assert chance([50.0, 52.0], [51.0], confidence=0.95) == pytest.approx(
        12.7062 * 3**0.5, rel=1e-5
    )
    # Two and two: (2 + 8) / 2 of 2 degrees of freedom; times 1/2 + 1/2; t is 4.3027.
    found = chance([50.0, 52.0], [50.0, 54.0], confidence=0.95)
    assert found == pytest.approx(4.30265 * 5**0.5, rel=1e-5)
    assert chance([50.0], [51.0], confidence=0.95) is None


def test_chance_keeps_its_level() -> None:
    """Trainings that differ only by chance are outside in about one of twenty cells."""
    draws = np.random.default_rng(0).normal(50.0, 1.2, (4000, 4))
    outside = [
        abs(row[3] - row[:3].mean()) > (chance(row[:3], row[3:], confidence=0.95) or 0.0)
        for row in draws.tolist()
        for row in [np.array(row)]
    ]
    assert 0.04 < np.mean(outside) < 0.06


def test_a_run_is_judged_against_the_kept_study(study: Callable[..., Project]) -> None:
    keep(study(0))
    keep(study(1))
    text = judge(study(2), "table3")
    assert "Kept: seeds 0, 1" in text and "Here: seeds 2" in text and "processors EPYC" in text
    row = next(line for line in text.splitlines() if line.startswith("| PosSAM | PQ |"))
    value = cell(kept())["value"]
    # Two kept values 1 apart, and one 1.5 above their mean: 12.706 x sqrt(0.5 x 1.5) = 11.0.
    expected = ["PosSAM", "PQ", f"{value:.1f}", f"{value + 1.5:.1f}", "+1.5", "± 11.0", "yes"]
    assert [part.strip() for part in row.strip("|").split("|")] == expected
    assert "0 of 10 cells outside chance" in text and "SAM + CLIP" not in text
    far = judge(study(20), "table3")
    assert "**no**" in far and "10 of 10 cells outside chance" in far


def test_one_training_against_one_says_nothing(study: Callable[..., Project]) -> None:
    with pytest.raises(InputError, match="no study is kept there"):
        judge(study(1), "table3")
    keep(study(0))
    text = judge(study(1), "table3")
    assert "cannot be said" in text and "says nothing of the spread" in text
