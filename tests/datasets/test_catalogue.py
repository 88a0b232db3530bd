"""The catalogue of data sets: found, light, and one list of roles for parameters and rules."""

import subprocess
import sys
from pathlib import Path

import pytest

from possam.datasets.catalogue import (
    datasets,
    find_dataset,
    module_of,
    trainable,
    users_of_roles,
)
from possam.params.project import Project
from possam.pipeline.codehash import module_closure
from possam.pipeline.declarations import STAGES
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.stages.convert import convert_dataset

PARAMS = Path(__file__).resolve().parents[2] / "params"


def test_only_panoptic_data_sets_are_trained_on() -> None:
    assert trainable() == ("ade20k", "coco")
    assert all(
        ("panoptic" in entry.metrics) == (name in trainable()) for name, entry in datasets().items()
    )


def test_unknown_data_sets_and_splits_are_named_with_the_choices() -> None:
    with pytest.raises(InputError, match="'voc'; valid choices: ade20k, ade20k_full, coco, pasc"):
        find_dataset("voc", "val")
    with pytest.raises(InputError, match="'ade20k_full': no split 'train'; valid choices: val"):
        find_dataset("ade20k_full", "train")


def test_finding_the_data_sets_imports_nothing_that_reads_pixels() -> None:
    code = (
        "import sys; import possam.params.project, possam.params.data; "
        "from possam.datasets.catalogue import datasets; datasets(); "
        "print([m for m in ('numpy', 'torch', 'PIL', 'scipy', 'pycocotools') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_data_set_s_reader_is_part_of_its_own_conversion_s_identity_only() -> None:
    for name in datasets():
        others = {module_of(other) for other in datasets()} - {module_of(name)}
        if name == "ade20k_full":  # it reads file names as ade20k does
            others -= {module_of("ade20k")}
        where = {"scale": "smoke", "dataset": name, "split": "val"}
        begins = STAGES["convert"].code(Project("smoke", folder=PARAMS), where)
        assert begins == ("possam.stages.convert", module_of(name))
        found = set(module_closure(*begins))
        assert module_of(name) in found and not others & found
        assert "possam.datasets.conversion" in found
    for stage in set(STAGES) - {"convert"}:
        found = set(module_closure(f"possam.stages.{stage}"))
        assert not [name for name in found if ".upstream." in name]


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_the_rules_ask_for_the_assets_of_every_role(scale: str) -> None:
    graph, project = Graph(folder=PARAMS), Project(scale, folder=PARAMS)
    asked = {
        record
        for name, entry in datasets().items()
        for split in entry.splits
        for record in graph.inputs("convert", {"scale": scale, "dataset": name, "split": split})
    }
    assets = {project.scale.assets[role] for role in users_of_roles()}
    assert asked == {f"data/{scale}/assets/{asset}.record.json" for asset in assets}
    where = {"scale": scale, "dataset": "pascal_context_459", "split": "val"}
    assert len(graph.inputs("convert", where)) == 3


def test_missing_assets_are_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = Project("smoke", folder=PARAMS)
    monkeypatch.chdir(tmp_path)
    for name, entry in datasets().items():
        asset = project.scale.assets[next(iter(entry.parts("val").values()))]
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
        for role in datasets()[name].parts("val").values():
            download_asset(project, project.scale.assets[role])
        convert_dataset(project, name, "val", workers=1)
        manifest = read_json(tmp_path / f"data/smoke/datasets/{name}_val/manifest.json")
        assert (manifest["num_classes"], manifest["counts"]["images"]) == (classes, 12)
        assert manifest["counts"]["things"] == 0 < manifest["counts"]["stuff"]
