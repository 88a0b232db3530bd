"""``possam compare``: two checkouts with the same evaluations."""

import json
import re
from pathlib import Path

import pytest

from possam.cli import main
from possam.params.layout import Layout
from possam.params.project import Project
from tests.support.small_study import write_evaluation, write_params

SEEDS = (5, 2)
COMPARE = ["compare", "table1", "old", "--scale", "smoke"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Evaluations here and, with fewer pixels right, in ``old``."""
    write_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    project = Project("smoke")
    for seed in SEEDS:
        write_evaluation(project, seed, variant="geometric", better=2, commit="d")
        write_evaluation(project, seed, variant="geometric", root=Path("old"))
    return project


def numbers(text: str, row: str) -> list[float]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row} |")]
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d", line)]


def test_what_has_become_better_is_reported_with_its_interval(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMPARE, "--out", "notes/changes.md"]) == 0
    text = capsys.readouterr().out
    assert Path("notes/changes.md").read_text() == text
    assert "## mIoU" in text and "Seeds 5, 2." in text and "other seeds" in text
    assert f"Commits: {'a' * 10} before, {'d' * 10} with changes after." in text
    before, after, change, low, high = numbers(text, "Ours")
    values = []
    for root in ("old", "."):
        folders = [
            Layout(project, root=Path(root)).evaluation("full", seed, "test", "trained")
            for seed in SEEDS
        ]
        results = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
        metrics = [result["variants"]["geometric"]["metrics"]["miou"] for result in results]
        values.append(sum(metrics) / 2)
    assert (before, after) == pytest.approx(values, abs=0.05)
    assert change == pytest.approx(values[1] - values[0], abs=0.05)
    assert 0.0 < low < change < high
    assert numbers(text, "mean of 1") == [before, after, change, low, high]


def test_the_same_results_have_not_changed(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*COMPARE[:2], ".", *COMPARE[3:]]) == 0
    assert numbers(capsys.readouterr().out, "Ours")[2:] == [0.0, 0.0, 0.0]


def test_other_bytes_of_the_data_set_are_reported(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(COMPARE) == 0
    assert "data sets differ" not in capsys.readouterr().out
    file = Layout(project, root=Path("old")).evaluation("full", 2, "test", "trained")
    file /= "evaluation.json"
    file.write_text(file.read_text().replace("of one content", "of another"))
    assert main(COMPARE) == 0
    assert "The converted data sets differ: test (same images" in capsys.readouterr().out


def test_one_seed_says_what_its_interval_leaves_out(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = Path("params/scales/smoke.yaml")
    scale.write_text(scale.read_text().replace("seeds: [5, 2]", "seeds: [5]"))
    assert main(COMPARE) == 0
    text = capsys.readouterr().out
    assert "Seed 5." in text and "do not cover what another training would give" in text


def test_what_cannot_be_compared_is_reported_and_nothing_is_written(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(message: str, *given: str) -> None:
        assert main([*(given or COMPARE), "--out", "changes.md"]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not Path("changes.md").exists()

    refused("nowhere: no such folder", *COMPARE[:2], "nowhere", *COMPARE[3:])
    refused("unknown table 'table0'; valid choices: table1", "compare", "table0", *COMPARE[2:])
    file = Layout(project, root=Path("old")).evaluation("full", 2, "test", "trained")
    file /= "evaluation.json"
    file.write_text(file.read_text().replace("geometric", "default"))
    refused("seed2/test/trained/evaluation.json: has no variant 'geometric'")
    file.unlink()
    target = "results/smoke/evaluations/full/seed2/test/trained/evaluation.json"
    refused(f"old/{target}: no such evaluation; make it in .*/old .*: snakemake {target}")
