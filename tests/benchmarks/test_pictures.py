"""The benchmark of a folder of pictures: every way through it finds the same."""

import subprocess
import sys
from typing import Any

import pytest

from benchmarks.harness import measure
from tests.support.lazy import LazyModule

pictures = LazyModule("benchmarks.pictures")
load = LazyModule("possam.pictures.load")
cli = LazyModule("possam.cli")


def test_every_way_through_a_folder_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from possam.params.project import Project

    def in_this_process(parts: list[str], **options: Any) -> None:
        assert parts[:3] == [sys.executable, "-m", "possam"]
        assert cli.main(parts[3:]) == 0

    monkeypatch.setattr(subprocess, "run", in_this_process)
    name = "possam_b_coco"
    cases = pictures.of_model(
        "mini",
        load.load_model(name),
        Project("mini").scale.model,
        ("--checkpoint", name),
        count=2,
    )
    calls, commands = (measure(case, repeats=1, report=lambda line: None) for case in cases)
    assert calls["items"] == commands["items"] == 2
    assert calls["error"] < 0.01, "ties of classes are broken by rounding"
    assert calls["others"][0]["error"] < 0.01
    assert commands["error"] < 0.01


def test_a_model_without_segments_differs_from_one_with_them() -> None:
    import numpy as np

    found = [np.array([[0, 1], [-1, 2]])]
    assert pictures.difference(found, [np.array([[0, 1], [-1, -1]])]) == 0.25
    assert pictures.difference(found, found) == 0
