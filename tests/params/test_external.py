"""Systems of external.yaml: faults are reported; their rows are shown where they belong."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.benchmarks import ExternalParams
from possam.params.project import Project
from possam.params.tables import Evaluation, Origin
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def entry(**changes: Any) -> dict[str, Any]:
    predictions = {"ade20k": "theirs/ade.json", "ade20k_full": "theirs/full"}
    return {"scale": "smoke", "trained_on": "coco", "predictions": predictions, **changes}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Change], Path]:
    """``write(change)``: params/ with ODISE's row in Table 1 external; ``change(entries, row)``."""
    folder = Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))

    def call(change: Change) -> Path:
        entries = {"odise": entry()}
        tables = yaml.safe_load((folder / "tables.yaml").read_text())
        (row,) = (row for row in tables["table1"]["rows"] if row["name"] == "ODISE")
        row["cells"] = {"coco_ade": {"external": "odise", "benchmark": "ade20k"}}
        change(entries, row)
        (folder / "external.yaml").write_text(yaml.safe_dump(entries))
        (folder / "tables.yaml").write_text(yaml.safe_dump(tables, sort_keys=False))
        return folder

    return call


def test_the_shipped_file_has_no_system(tmp_path: Path) -> None:
    assert Project("mini", folder=REPOSITORY / "params").external == {}


def test_the_shipped_example_is_valid(write: Callable) -> None:
    text = (REPOSITORY / "params/external.yaml").read_text()
    example = text[text.index("# odise:") :].replace("# ", "")
    folder = write(lambda entries, row: None)
    (folder / "external.yaml").write_text(example)
    found = Project("paper", folder=folder).external["odise"]
    assert found.paths("ade20k") == {
        "predictions": "data/paper/predictions/odise_ade20k.json",
        "segmentations": "data/paper/predictions/odise_ade20k_png",
    }
    assert found.paths("ade20k_full") == {"predictions": "data/paper/predictions/odise_ade20k_full"}


def test_pngs_lie_beside_their_json_under_its_name() -> None:
    found = ExternalParams(**entry())
    assert found.paths("ade20k")["segmentations"] == "theirs/ade"
    assert found.is_panoptic("ade20k") and not found.is_panoptic("ade20k_full")


def test_a_cell_shows_a_system_without_seeds(write: Callable) -> None:
    project = Project("smoke", folder=write(lambda entries, row: None))
    (row,) = (row for row in project.tables["table1"].rows if row.name == "ODISE")
    origin = row.cells["coco_ade"].origin
    assert origin == Origin("odise", "ade20k", "external", "default")
    assert origin.evaluations((3, 4)) == [Evaluation("odise", 0, "ade20k", "external")]
    assert row.source == "external" and origin in project.tables["table1"].origins()
    sources = {row.source for row in project.tables["table1"].rows}
    assert sources == {"published", "reproduced", "external", "training_free", "later"}


def test_a_system_is_shown_at_its_scale_alone(write: Callable) -> None:
    shipped = {
        scale: Project(scale, folder=REPOSITORY / "params").tables for scale in ("smoke", "mini")
    }
    folder = write(lambda entries, row: None)
    assert Project("mini", folder=folder).tables == shipped["mini"]
    assert Project("smoke", folder=folder).tables != shipped["smoke"]
    folder = write(lambda entries, row: row.update(name="New", published=False))
    names = [row.name for row in Project("smoke", folder=folder).tables["table1"].rows]
    others = [row.name for row in Project("mini", folder=folder).tables["table1"].rows]
    assert [name for name in names if name != "New"] == others and "New" in names


FAULTS: dict[str, tuple[Change, list[str]]] = {
    "unknown key": (
        lambda entries, row: entries["odise"].update(train="coco"),
        ["external.yaml: odise", "train:", "valid keys: category_ids, predictions, scale"],
    ),
    "no scale": (
        lambda entries, row: entries["odise"].pop("scale"),
        ["external.yaml: odise", "scale: Field required", "mini, paper, smoke"],
    ),
    "unknown scale": (
        lambda entries, row: entries["odise"].update(scale="huge"),
        ["external.yaml: odise.scale", "'huge'", "mini, paper, smoke"],
    ),
    "training set without training": (
        lambda entries, row: entries["odise"].update(trained_on="ade20k_full"),
        ["odise.trained_on", "'ade20k_full'", "ade20k, coco"],
    ),
    "numbering": (
        lambda entries, row: entries["odise"].update(category_ids="coco"),
        ["odise: category_ids", "'contiguous' or 'upstream'"],
    ),
    "unknown benchmark": (
        lambda entries, row: entries["odise"]["predictions"].update(voc="x.json"),
        ["odise.predictions", "'voc'", "ade20k, ade20k_full, coco"],
    ),
    "a benchmark of speed": (
        lambda entries, row: entries["odise"]["predictions"].update(speed="x.json"),
        ["odise.predictions", "'speed'", "ade20k, ade20k_full, coco, pascal_context_459"],
    ),
    "no predictions": (
        lambda entries, row: entries["odise"].update(predictions={}),
        ["odise: predictions", "at least 1"],
    ),
    "segmentations of label maps": (
        lambda entries, row: entries["odise"].update(segmentations={"ade20k_full": "x"}),
        ["odise.segmentations", "'ade20k_full'", "valid choices: ade20k"],
    ),
    "the name of a run": (
        lambda entries, row: entries.update(possam_b_coco=entry()),
        ["external.yaml: possam_b_coco", "runs.yaml", "rename"],
    ),
    "unknown system": (
        lambda entries, row: row["cells"]["coco_ade"].update(external="odyssey"),
        ["tables.yaml", "rows[ODISE].cells.coco_ade.external", "'odyssey'", "odise"],
    ),
    "no predictions for the benchmark": (
        lambda entries, row: row["cells"]["coco_ade"].update(benchmark="coco"),
        ["rows[ODISE].cells.coco_ade.benchmark", "'coco'", "ade20k, ade20k_full", "external.yaml"],
    ),
    "run and system": (
        lambda entries, row: row["cells"]["coco_ade"].update(run="possam_b_coco"),
        ["tables.yaml: table1", "cells.coco_ade.run", "keep one"],
    ),
    "neither": (
        lambda entries, row: row["cells"]["coco_ade"].pop("external"),
        ["cells.coco_ade.run", "required", "'external'", "possam_b_ade20k"],
    ),
    "a variant": (
        lambda entries, row: row["cells"]["coco_ade"].update(variant="default"),
        ["cells.coco_ade.variant", "no inference variants", "remove"],
    ),
    "no text": (
        lambda entries, row: row["cells"]["coco_ade"].update(external=5),
        ["cells.coco_ade.external", "string", "valid choices: odise"],
    ),
    "runs beside predictions": (
        lambda entries, row: row["cells"].update(
            ade_coco={"run": "possam_b_ade20k", "benchmark": "coco"}
        ),
        ["rows[ODISE].cells", "in one row", "make a row of each"],
    ),
    "unpublished without predictions": (
        lambda entries, row: (row.update(published=False), row.pop("cells")),
        ["rows[ODISE].published", "shows nothing", "give it cells"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_reported_with_file_key_and_choices(write: Callable, fault: str) -> None:
    change, expected = FAULTS[fault]
    folder = write(change)
    for scale in ("smoke", "mini"):  # also where its row is not shown
        with pytest.raises(InputError) as caught:
            Project(scale, folder=folder)
        for part in expected:
            assert part in str(caught.value), str(caught.value)


def test_a_reference_row_is_of_a_run(write: Callable) -> None:
    folder = write(lambda entries, row: None)
    tables = folder / "tables.yaml"
    text = tables.read_text()
    tables.write_text(text.replace("reference: PosSAM (H)", "reference: ODISE"))
    with pytest.raises(InputError, match=r"table1\.reference: unknown reproduced row 'ODISE'"):
        Project("smoke", folder=folder)


def test_label_maps_need_a_benchmark_of_miou(write: Callable) -> None:
    folder = write(lambda entries, row: entries["odise"]["predictions"].update(coco="theirs/coco"))
    benchmarks = folder / "benchmarks.yaml"
    data = yaml.safe_load(benchmarks.read_text())
    data["coco"]["metrics"] = ["panoptic"]
    benchmarks.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=r"odise\.predictions\.coco: label PNGs only give mIoU"):
        Project("smoke", folder=folder)
