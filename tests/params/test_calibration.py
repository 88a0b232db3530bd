"""Targets of the mini world: each a range with its source, and a scale of its own to measure on."""

from pathlib import Path

import pytest

from possam.params.calibration import calibration_targets
from possam.params.project import Project
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
PARAMS = REPOSITORY / "params"


def test_a_range_holds_its_bounds_and_names_its_source() -> None:
    targets = calibration_targets(PARAMS)
    accuracy = targets["clip_domain_b"]
    assert [accuracy.holds(x) for x in (0.469, 0.47, 0.53, 0.531)] == [False, True, True, False]
    assert all(target.source and target.what for target in targets.values())


def test_a_range_upside_down_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.yaml").write_text("x: {low: 2.0, high: 1.0, what: a, source: b}\n")
    with pytest.raises(InputError, match=r"calibration.yaml: x: high: .*above low"):
        calibration_targets(tmp_path)


def test_no_scene_of_the_calibration_is_one_of_a_table() -> None:
    """The scale differs from mini in its scenes only, and these are of another seed."""
    mini, smoke, own = (
        Project(name, folder=PARAMS).scale for name in ("mini", "smoke", "calibration")
    )
    assert mini.world and smoke.world and own.world
    assert own.world.seed not in (mini.world.seed, smoke.world.seed)
    same = own.model_copy(update={"title": mini.title, "world": mini.world})
    assert same == mini
    trained = ("coco_train", "coco_val", "ade20k_val")
    assert all(getattr(own.world, name) == getattr(mini.world, name) for name in trained)
