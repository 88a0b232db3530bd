"""A row of external predictions: the rules make its evaluation and the table, nothing else."""

import csv
import shutil

import pytest

from possam.runtime.files import read_json
from tests.whole.conftest import TARGETS, Workspace
from tests.whole.test_smoke import edited, planned

pytestmark = pytest.mark.pipeline

TABLE = TARGETS[0]
FOLDER = "data/smoke/predictions"
ENTRY = f"""
odise:
  scale: smoke
  trained_on: coco
  predictions: {{ade20k: {FOLDER}/ade.json}}
  segmentations: {{ade20k: {FOLDER}/png}}
"""
ROWS = "    - {name: ODISE}\n    - {name: OPSNet}"
CELL = ROWS.replace("ODISE", "ODISE, cells: {coco_ade: {external: odise, benchmark: ade20k}}")


def test_the_ground_truth_as_another_system_s_predictions(finished: Workspace) -> None:
    truth, folder = finished.folder / "data/smoke/datasets/ade20k_val", finished.folder / FOLDER
    params, results = finished.folder / "params", finished.folder / "results/smoke"
    entries = params / "external.yaml"
    # Without MLflow's and Snakemake's records: they say when the table was made.
    files = [p for p in results.glob("table1.*") if p.suffix in (".csv", ".json", ".md", ".tex")]
    before = {path: path.read_bytes() for path in files if "track" not in path.name}
    assert len(before) == 5
    with (
        edited(params / "tables.yaml", ROWS, CELL),
        edited(entries, entries.read_text(), entries.read_text() + ENTRY),
    ):
        done = finished.run("snakemake", "-n", TABLE, check=False)
        assert done.returncode and f"{FOLDER}/ade.json: no such JSON" in done.stdout + done.stderr
        shutil.copytree(truth / "panoptic", folder / "png")
        shutil.copy2(truth / "annotations.json", folder / "ade.json")
        jobs = planned(finished)
        assert {rule for rule, _ in jobs} == {"external", "table", "track"} and len(jobs) == 3
        finished.snakemake(TABLE)
        for path in [*folder.rglob("*"), params / "external.yaml"]:
            path.touch()
        assert "Nothing to be done" in finished.snakemake(TABLE)
        with (finished.folder / TABLE).open() as stream:
            found = {row["row"]: row for row in csv.DictReader(stream)}
        text = (results / "table1.md").read_text()
        png = next((folder / "png").iterdir())
        png.write_bytes(png.read_bytes() + b"\0")
        assert {rule for rule, _ in planned(finished)} == {"external", "table", "track"}
    shutil.rmtree(folder)
    evaluation = read_json(results / "evaluations/odise/seed0/ade20k/external/evaluation.json")
    shutil.rmtree(results / "evaluations/odise")
    finished.snakemake(TABLE)
    assert {path: path.read_bytes() for path in before} == before

    odise, metrics = found["ODISE"], evaluation["variants"]["default"]["metrics"]
    assert (odise["source"], odise["coco_ade_pq"], odise["coco_ade_sq"]) == (
        *("external", "100.0000", "100.0000"),
    )
    assert odise["coco_ade_miou"] == f"{metrics['miou']:.4f}"
    assert (odise["coco_ade_pq_published"], odise["coco_ade_pq_difference"]) == ("23.2", "76.8000")
    assert float(odise["coco_ade_pq_versus_low"]) > 0
    assert (odise["coco_ade_map"], odise["coco_ade_map_published"]) == ("", "14.0")
    assert odise["ade_coco_pq"] == "25.0", "published"
    assert "- ODISE, mAP (COCO -> ADE20K): " in text
    assert evaluation["variants"]["default"]["check"]["panopticapi_pq"] == 100.0
    seen = read_json(results / "evaluations/possam_b_coco/seed0/ade20k/trained/evaluation.json")
    assert evaluation["counts"] == seen["counts"]
