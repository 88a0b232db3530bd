"""The catalogue of data sets: one list of roles for parameters, rules and conversion."""

from pathlib import Path

import pytest

from possam.datasets.catalogue import DATASETS, ROLES, TRAINABLE, source
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.stages.convert import convert_dataset

PARAMS = Path(__file__).resolve().parents[2] / "params"


def test_only_panoptic_data_sets_are_trained_on() -> None:
    assert TRAINABLE == ("coco", "ade20k")
    assert all(
        ("panoptic" in entry.metrics) == (name in TRAINABLE) for name, entry in DATASETS.items()
    )


def test_unknown_data_sets_and_splits_are_told_with_the_choices() -> None:
    with pytest.raises(InputError, match="'voc'; valid choices: coco, ade20k, ade20k_full"):
        source("voc", "val")
    with pytest.raises(InputError, match="'ade20k_full': no split 'train'; valid choices: val"):
        source("ade20k_full", "train")


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_the_rules_ask_for_the_assets_of_every_role(scale: str) -> None:
    graph, project = Graph(folder=PARAMS), Project(scale, folder=PARAMS)
    asked = {
        record
        for name, entry in DATASETS.items()
        for split in entry.splits
        for record in graph.inputs("convert", {"scale": scale, "dataset": name, "split": split})
    }
    assets = {project.scale.assets[role] for role in ROLES}
    assert asked == {f"data/{scale}/assets/{asset}.record.json" for asset in assets}
    where = {"scale": scale, "dataset": "pascal_context_459", "split": "val"}
    assert len(graph.inputs("convert", where)) == 3


def test_missing_assets_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project("smoke", folder=PARAMS)
    monkeypatch.chdir(tmp_path)
    for name, entry in DATASETS.items():
        asset = project.scale.assets[next(iter(entry.assets("val").values()))]
        with pytest.raises(InputError, match=f"possam download {asset} --scale smoke"):
            convert_dataset(project, name, "val", workers=1)
    assert not list(tmp_path.iterdir())


def test_converting_takes_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """World, fetch and conversion of the two semantic test sets at smoke scale."""
    from possam.stages.download import download_asset
    from possam.stages.world import make_world

    (tmp_path / "params").symlink_to(PARAMS)
    monkeypatch.chdir(tmp_path)
    project = Project("smoke")
    make_world(project, workers=1)
    for name, classes in (("ade20k_full", 80), ("pascal_context_459", 51)):
        for role in DATASETS[name].assets("val").values():
            download_asset(project, project.scale.assets[role])
        convert_dataset(project, name, "val", workers=1)
        manifest = read_json(tmp_path / f"data/smoke/datasets/{name}_val/manifest.json")
        assert (manifest["num_classes"], manifest["counts"]["images"]) == (classes, 12)
        assert manifest["counts"]["things"] == 0 < manifest["counts"]["stuff"]
