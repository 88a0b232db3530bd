"""Figures' parameters: the repository's are valid; faults are reported with valid choices."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.figures import KINDS, find_figure, load_figures
from possam.params.project import Project
from possam.params.tables import Evaluation
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_the_figures_of_every_scale(folder: Path, scale: str) -> None:
    figures = load_figures(Project(scale, folder=folder))
    assert {params.kind for params in figures.values()} == set(KINDS)


def test_needs(folder: Path) -> None:
    (folder / "scales/mini.yaml").write_text(
        (folder / "scales/mini.yaml").read_text().replace("seeds: [0]", "seeds: [3, 4]")
    )
    project = Project("mini", folder=folder)
    needs = {name: params.needs(project) for name, params in load_figures(project).items()}
    assert needs["oversegmentation"].runs == (("possam_h_coco", 3),)
    assert needs["oversegmentation"].towers == ("h", "clip")
    assert needs["qualitative"].datasets == (("ade20k", "val"), ("coco", "val"))
    assert needs["feature_clusters"].towers == ("h", "clip")
    assert needs["encoder_vs_decoder"].towers == ("h",)
    assert needs["encoder_vs_decoder"].runs == () and needs["feature_clusters"].runs == ()
    assert needs["seen_unseen"].evaluations == tuple(
        Evaluation(run, seed, "ade20k", "trained")
        for run in ("fcclip_coco", "possam_b_coco", "possam_l_coco", "possam_h_coco")
        for seed in (3, 4)
    )
    assert needs["seen_unseen"].published == ("table3_seen_unseen.csv",)
    shown = {key.run for key in project.tables["table1"].evaluations((3,)) if key.is_trained}
    assert set(needs["training_curves"].runs) == {(run, s) for run in shown for s in (3, 4)}


@pytest.mark.parametrize(
    ("figure", "change", "expected"),
    [
        ("qualitative", {"kind": "picture"}, ["qualitative.kind", "'picture'", "oversegment"]),
        ("qualitative", {"run": "possam_x"}, ["qualitative.run", "'possam_x'", "possam_h_coco"]),
        (
            "qualitative",
            {"benchmarks": ["ade"]},
            ["benchmarks", "'ade'", "ade20k, ade20k_full, coco"],
        ),
        ("qualitative", {"images": 0}, ["qualitative", "images", "greater than 0"]),
        ("qualitative", {"sede": 1}, ["sede", "valid keys", "seed"]),
        ("feature_clusters", {"sam": "xl"}, ["feature_clusters.sam", "'xl'", "b, h, l"]),
        ("feature_clusters", {"clusters": 1}, ["feature_clusters", "clusters"]),
        ("training_curves", {"tables": ["table99"]}, ["tables", "'table99'", "table1"]),
        (
            "seen_unseen",
            {"bars": [{"name": "A", "run": "nothing", "benchmark": "coco"}]},
            ["bars.run", "'nothing'", "possam_b_coco"],
        ),
    ],
)
def test_faults_are_reported(
    folder: Path, figure: str, change: dict[str, Any], expected: list[str]
) -> None:
    path = folder / "figures.yaml"
    data = yaml.safe_load(path.read_text())
    data[figure].update(change)
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError) as caught:
        load_figures(Project("mini", folder=folder))
    for part in ("figures.yaml", *expected):
        assert part in str(caught.value)


def test_an_unknown_figure(folder: Path) -> None:
    with pytest.raises(InputError, match="unknown figure 'fig9'; valid choices: encoder_vs"):
        find_figure(Project("mini", folder=folder), "fig9")
