"""A finished study as an RO-Crate: what it holds, and how a table leads to its trainings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from possam.params.project import Project
from possam.runtime.errors import InputError
from possam.stages.crate import main, make_crate

ROOT = Path(__file__).resolve().parents[2]
RUN = "fcclip_coco/seed0"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Table 1 as kept in git, with one evaluation and one training that are made up."""
    for name in ("params", "workflow", "Snakefile", "LICENSE", "requirements.lock"):
        (tmp_path / name).symlink_to(ROOT / name)
    results = tmp_path / "results/mini"
    results.mkdir(parents=True)
    for path in (ROOT / "results/mini/measured").glob("table1.*"):
        shutil.copy(path, results)
    provenance = {"seed": 0, "wall_time_s": 90.5, "started": "2026-11-30T10:00:00+00:00"}
    provenance |= {"git": {"commit": "abc"}, "hardware": {"cpu": "a processor"}}
    for stage, folder, name in (
        ("train", results / "runs" / RUN, "run.json"),
        ("evaluate", results / "evaluations" / RUN / "ade20k/trained", "evaluation.json"),
    ):
        folder.mkdir(parents=True)
        (folder / name).write_text("{}")
        (folder / "provenance.json").write_text(json.dumps({"stage": stage, **provenance}))
    record = tmp_path / "data/mini/assets/synthetic_ade20k.record.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"sha256": "f00d"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def graph(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "ro-crate-metadata.json").read_text())
    return {entity["@id"]: entity for entity in content["@graph"]}


def test_a_table_leads_to_its_card_and_to_what_it_is_made_from(study: Path) -> None:
    entities = graph(make_crate(Project("mini"), Path("crates/mini")))
    table = entities["results/mini/table1.csv"]
    assert {"@id": "results/mini/table1.json"} in table["subjectOf"]
    key = f"#{RUN}/ade20k/trained"
    assert table["wasDerivedFrom"] == [{"@id": key}]
    action = entities[key]
    assert action["startTime"] == "2026-11-30T10:00:00+00:00"
    assert action["endTime"] == "2026-11-30T10:01:30.500000+00:00"
    assert "90.5 s on a processor, seed 0, commit abc" in action["description"]
    training = entities[f"#{RUN}"]
    assert {"@id": f"results/mini/runs/{RUN}/run.json"} in training["result"]


def test_it_says_by_what_from_what_and_on_what_terms(study: Path) -> None:
    folder = make_crate(Project("mini"), Path("crates/mini"))
    entities = graph(folder)
    study_action = entities["#study"]
    assert study_action["instrument"] == {"@id": "Snakefile"}
    assert {"@id": "params/scales/mini.yaml"} in study_action["object"]
    assert {"@id": "results/mini/table1.csv"} in study_action["result"]
    assert entities["#asset-synthetic_ade20k"]["identifier"] == "sha256:f00d"
    assert entities["#asset-synthetic_ade20k"]["usageInfo"] == "made by this project"
    assert entities["./"]["license"] == {"@id": "https://spdx.org/licenses/Apache-2.0"}
    for identifier, entity in entities.items():
        if "File" in entity["@type"] and identifier != "./":
            assert (folder / identifier).is_file(), identifier


def test_what_cannot_be_made_is_said_and_leaves_nothing(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (study / "crates/mini").mkdir(parents=True)
    with pytest.raises(InputError, match="exists already"):
        make_crate(Project("mini"), Path("crates/mini"))
    assert main(["--scale", "smoke"]) == 2
    assert "no finished table" in capsys.readouterr().err
    assert not (study / "crates/smoke").exists()
