"""The error budget of a table as numbers and as a figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from possam.evaluation.statistics import Resampled
from possam.params.project import Project
from possam.params.tables import Origin
from possam.reporting import error_budget
from possam.reporting.error_budget import LINES, compare_budgets
from possam.reporting.figures.error_budget import draw_budgets
from possam.reporting.figures.style import house_style

PARAMS = Path(__file__).resolve().parents[2] / "params"


def test_gains_are_paired_and_ratios_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {
        "default": [19.0, 21.0],
        "oracle_labels": [50.0, 50.0],
        "ground_truth_masks": [24.0, 26.0],
    }

    def resample(project: Project, origin: Origin) -> Resampled:
        closed = origin.benchmark == "coco"
        samples = np.array([40.0, 40.0] if closed else drawn[origin.variant])
        return Resampled({"pq": float(samples.mean()), "map": 1.0}, {"pq": samples, "map": samples})

    monkeypatch.setattr(error_budget, "_resample", resample)
    project = Project("mini", folder=PARAMS)
    found = compare_budgets(project, project.tables["table3"])["ade"]
    assert found["gains"].keys() == {"ground_truth_masks", "oracle_labels"}
    # The images that are drawn raise both results alike: the difference has no spread.
    assert found["gains"]["ground_truth_masks"] == {"pq": {"value": 5.0, "low": 5.0, "high": 5.0}}
    gain = found["gains"]["oracle_labels"]["pq"]
    # Differences of 31 and 29: the middle 95 % between them.
    assert (gain["value"], gain["low"], gain["high"]) == pytest.approx((30.0, 29.05, 30.95))
    ratio = found["ratio"]["pq"]
    assert (ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((0.5, 0.47625, 0.52375))


def test_a_group_of_four_bars_per_row_with_its_whiskers() -> None:
    values: dict[str, Any] = {
        line: {"pq": {"value": 10.0 * k, "low": 10.0 * k - 1, "high": 10.0 * k + 1}}
        for k, line in enumerate(LINES, 1)
    }
    values["closed_set"] |= {"miou": {"value": 55.0, "low": None, "high": None}}
    with house_style():
        figure = draw_budgets(
            {"PosSAM\nCOCO -> ADE20K": values, "B\nsame": values},
            title="t",
            subtitle="s",
            note="n",
        )
    quality, semantic = figure.axes
    assert [bar.get_height() for bar in quality.patches] == [10, 10, 20, 20, 30, 30, 40, 40]
    assert [bar.get_height() for bar in semantic.patches] == [55, 55]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LINES.values())
    assert {text.get_text() for text in quality.texts} == {"10.0", "20.0", "30.0", "40.0"}
