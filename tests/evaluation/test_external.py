"""Predictions of other systems, from external.yaml to a table's row and MLflow's record."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from possam import cli
from possam.datasets.format import ConvertedDataset
from possam.evaluation.comparison import load_seeds, paired_differences
from possam.evaluation.score import measure_predictions, score
from possam.evaluation.statistics import resample
from possam.evaluation.summary import write_variants
from possam.params.layout import Layout
from possam.params.project import Project
from possam.params.tables import Origin
from possam.pipeline.external import hash_predictions, prediction_files
from possam.reporting.records import read_records
from possam.reporting.table_text import terminal
from possam.runtime.errors import InputError
from possam.runtime.files import read_json, sha256_file
from possam.stages.external import evaluate_external
from possam.stages.report import job_records
from possam.stages.table import make_table

PARAMS = Path(__file__).resolve().parents[2] / "params"
SEEDS = (5, 2)
RUN = {"run": "full", "benchmark": "test"}
COLUMNS = ("pq", "pq_unseen", "map", "miou")
TABLE = {
    "title": "Table",
    "published": "small.csv",
    "groups": {"g": "Direction"},
    "columns": [{"key": key, "group": "g", "metric": key, "title": key} for key in COLUMNS],
    "rows": [
        {"name": "Theirs", "cells": {"g": {"external": "theirs", "benchmark": "test"}}},
        {
            "name": "Labels",
            "cells": {"g": {"external": "labels", "benchmark": "test"}},
            "published": False,
        },
        *({"name": f"Ours {k}", "cells": {"g": {**RUN, "variant": k}}} for k in "abc"),
    ],
    "reference": "Ours c",
    "agreement": True,
}


@pytest.fixture
def project(
    dataset: ConvertedDataset,
    written: Path,
    labels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Project:
    """The toy set as test and training set; its ground truth as two systems' predictions.

    Beside them a run with two seeds, evaluated in three variants by worse predictions.
    """
    folder = Path(shutil.copytree(PARAMS, tmp_path / "params"))
    variants = {"default": {}, **{name: {"alpha": 0.1} for name in "abc"}}
    files = {
        "runs": {"full": {"sam": "b", "train": "coco"}},
        "benchmarks": {
            "test": {
                "dataset": "coco",
                "split": "val",
                "metrics": ["panoptic", "instance", "semantic"],
            }
        },
        "variants": variants,
        "tables": {"table1": TABLE},
        "figures": {},
        "external": {
            "theirs": {
                "scale": "smoke",
                "trained_on": "coco",
                "predictions": {"test": str(written.relative_to(tmp_path))},
            },
            "labels": {"scale": "smoke", "trained_on": "coco", "predictions": {"test": "labels"}},
        },
    }
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "published" / "small.csv").write_text(
        "method,venue,pq,pq_unseen,map,miou\nTheirs,ECCV 2022,41.5,,14.0,\n"
        "Ours a,,1.0,,,\nOurs b,,2.0,,,\nOurs c,,3.0,,,\n"
    )
    scale = folder / "scales" / "smoke.yaml"
    settings = yaml.safe_load(scale.read_text())
    settings["seeds"] = list(SEEDS)
    settings["evaluation"].update(bootstrap_samples=60)
    scale.write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        shutil.copytree(dataset.directory, f"data/smoke/datasets/coco_{split}")
    return Project("smoke")


def worse(written: Path, folder: Path, images: int) -> Path:
    """A copy of predictions that misses every segment of some images."""
    shutil.copytree(written.with_suffix(""), folder.with_suffix(""))
    content = read_json(written)
    for annotation in content["annotations"][:images]:
        annotation["segments_info"] = []
        path = folder.with_suffix("") / annotation["file_name"]
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    target = folder.with_suffix(".json")
    target.write_text(json.dumps(content))
    return target


@pytest.fixture
def ours(project: Project, dataset: ConvertedDataset, written: Path) -> None:
    """The run's evaluations: each variant and seed misses some images; its AP is that of none."""
    for number, seed in enumerate(SEEDS):
        parts, tables = {}, {}
        for place, variant in enumerate("abc"):
            name = Path(f"worse/{variant}{seed}")
            tables[variant], parts[variant] = measure_predictions(
                dataset=dataset,
                predictions=worse(written, name, 1 + place + number),
                evaluation=project.scale.evaluation,
                seen=[True] * 5,
            )
            parts[variant]["metrics"] |= {"map": 10.0, "pq_unseen": 20.0}
            parts[variant]["intervals"] |= {"map": [9.0, 11.0], "pq_unseen": [19.0, 21.0]}
        where = {**RUN, "seed": seed, "condition": "trained"}
        result = {**where, "scale": "smoke", "variants": parts}
        write_variants(Layout(project).evaluation(**where), result, tables)


@pytest.fixture
def averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """No per-image statistics stand behind the invented metrics of the run."""
    from possam.evaluation import comparison

    real = comparison.average_seeds

    def average(*arguments: Any, **options: Any) -> comparison.SeedAverage:
        found = real(*arguments, **options)
        found.intervals.update(map=[9.0, 11.0], pq_unseen=[19.0, 21.0])
        return found

    monkeypatch.setattr("possam.reporting.measurement.average_seeds", average)


def evaluate(project: Project) -> dict[str, dict[str, Any]]:
    found = {}
    for name in project.external:
        evaluate_external(project, name, "test", workers=1)
        folder = Path(f"results/smoke/evaluations/{name}/seed0/test/external")
        assert (folder / "default/per_image.parquet").is_file()
        found[name] = read_json(folder / "evaluation.json")
    return found


def test_the_evaluation_is_what_score_gives_with_seen_classes(
    project: Project, dataset: ConvertedDataset, written: Path
) -> None:
    annotations = Path("data/smoke/datasets/coco_train/annotations.json")
    content = read_json(annotations)
    content["categories"][0]["names"] = ["lion"]  # cat is unseen
    content["categories"][4]["names"] = ["lorry"]  # and so is bus
    annotations.write_text(json.dumps(content))
    manifest = annotations.with_name("manifest.json")
    listed = read_json(manifest)
    listed["sha256"]["annotations"] = sha256_file(annotations)
    manifest.write_text(json.dumps(listed))
    found = evaluate(project)
    expected = score(
        dataset=dataset,
        predictions=written,
        evaluation=project.scale.evaluation,
        seen=[False, True, True, True, False],
    )
    for key in ("metrics", "intervals", "per_class", "check", "protocol"):
        assert found["theirs"]["variants"]["default"][key] == expected[key], key
    assert expected["metrics"]["pq"] == expected["metrics"]["pq_unseen"] == 100.0
    assert found["theirs"]["counts"] == expected["counts"] and expected["counts"]["unseen"] == 2
    assert set(found["labels"]["variants"]["default"]["metrics"]) == {"miou", "miou_union"}
    provenance = read_json("results/smoke/evaluations/theirs/seed0/test/external/provenance.json")
    assert provenance["inputs"] == found["theirs"]["inputs"]
    assert len(provenance["inputs"]["predictions"]) == 64


def test_a_benchmark_gives_the_metrics_that_it_names(project: Project) -> None:
    path = Path("params/benchmarks.yaml")
    path.write_text(path.read_text().replace("- panoptic\n", "").replace("- instance\n", ""))
    tables = Path("params/tables.yaml")
    table = {**TABLE, "columns": [TABLE["columns"][-1]]}
    tables.write_text(yaml.safe_dump({"table1": table}))
    found = evaluate(Project("smoke"))
    assert set(found["theirs"]["variants"]["default"]["metrics"]) == {"miou", "miou_union"}


@pytest.mark.usefixtures("ours", "averaged")
def test_rows_of_predictions_in_every_file(project: Project, capsys: Any) -> None:
    metrics = evaluate(project)["theirs"]["variants"]["default"]
    make_table(project, "table1")
    with open("results/smoke/table1.csv", encoding="utf-8") as stream:
        theirs, maps, *rows = csv.DictReader(stream)
    assert [row["source"] for row in (theirs, maps, *rows)] == [
        *("external", "external"),
        *["reproduced"] * 3,
    ]
    assert theirs["pq"] == f"{metrics['metrics']['pq']:.4f}" == "100.0000"
    assert (theirs["pq_low"], theirs["pq_high"]) == ("100.0000", "100.0000")
    assert (theirs["pq_published"], theirs["pq_difference"]) == ("41.5", "58.5000")
    assert theirs["miou"] == f"{metrics['metrics']['miou']:.4f}" != "100.0000"
    low, high = metrics["intervals"]["miou"]
    assert (theirs["miou_low"], theirs["miou_high"]) == (f"{low:.4f}", f"{high:.4f}")
    assert theirs["miou_published"] == theirs["miou_difference"] == "", "never published"
    assert theirs["pq_std"] == "" != rows[0]["pq_std"], "predictions have no seeds"
    assert (theirs["g_run"], theirs["g_variant"]) == ("theirs", "")
    assert theirs["g_run_identity"] == hash_predictions(prediction_files(project, "theirs", "test"))
    assert (theirs["map"], theirs["map_published"], theirs["map_low"]) == ("", "14.0", "")
    assert theirs["pq_unseen"] == maps["pq"] == maps["map"] == "", "not given"
    assert maps["miou"] == "100.0000" and maps["miou_published"] == ""
    layout = Layout(project)
    bootstrap = project.scale.evaluation.bootstrap
    sides = []
    for origin in (
        Origin("theirs", "test", "external", "default"),
        Origin("full", "test", "trained", "c"),
    ):
        folders = [layout.evaluation(*key) for key in origin.evaluations(SEEDS)]
        sides.append(resample(*load_seeds(folders, origin.variant), bootstrap=bootstrap))
    expected = paired_differences(*sides, confidence=0.95)["pq"]
    assert expected.low > 0
    assert float(theirs["pq_versus"]) == pytest.approx(expected.value, abs=1e-4)
    assert float(theirs["pq_versus_low"]) == pytest.approx(expected.low, abs=1e-4)
    assert maps["miou_versus"] and maps["pq_versus"] == theirs["pq_unseen_versus"] == ""

    text = Path("results/smoke/table1.md").read_text()
    assert "| Theirs (ECCV 2022) | external | **100.0**<br>published 41.5 (+58.5) |  |" in text
    assert "|  | <br>published 14.0 |" in text
    empty = text[text.index("## Empty cells") : text.index("## Against")]
    assert "- Theirs, map: it ranks masks by scores" in empty
    assert "- Theirs, pq_unseen: no such class occurs" in empty
    assert "- Labels, pq: label maps do not tell segments apart." in empty
    assert empty.count("\n- ") == 5 and "Ours" not in empty
    ranks = text[text.index("## Agreement") :]
    assert "| pq |" in ranks and "| 3 |\n" in ranks, "three reproduced rows"
    assert "Left out because external: Theirs, Labels." in ranks
    assert "predictions of another system" in text and "predictions of `theirs`" in text
    card = read_json("results/smoke/table1.json")
    assert card["agreement"]["pq"]["rows"] == 3
    assert {"theirs/seed0/test/external", "full/seed5/test/trained"} < set(card["evaluations"])
    assert read_json("results/smoke/table1.metrics.json")["Theirs"].keys() == {"pq", "miou"}
    tex = Path("results/smoke/table1.tex").read_text()
    assert r"Theirs$^\dagger$ & \textbf{100.0} & -- & -- &" in tex
    assert r"$^\dagger$External predictions, measured here." in tex
    shown = terminal(card)
    assert "Theirs +" in shown and "Ours a *" in shown and "+ external predictions" in shown
    assert "14.0" not in shown, "the cell is empty, not published"


@pytest.mark.usefixtures("ours", "averaged")
def test_without_external_rows_nothing_speaks_of_them(project: Project) -> None:
    (Path("params") / "external.yaml").write_text("# nothing\n")
    tables = Path("params/tables.yaml")
    content = yaml.safe_load(tables.read_text())
    content["table1"]["rows"] = content["table1"]["rows"][2:]
    tables.write_text(yaml.safe_dump(content, sort_keys=False))
    make_table(Project("smoke"), "table1")
    for suffix in (".md", ".tex", ".csv"):
        text = Path("results/smoke/table1").with_suffix(suffix).read_text()
        assert "xternal" not in text and "Empty cells" not in text and "dagger" not in text
    assert "external" not in terminal(read_json("results/smoke/table1.json"))


def test_a_missing_evaluation_is_reported_with_its_command(project: Project) -> None:
    with pytest.raises(InputError, match=r"'theirs' on 'test'.*possam evaluate theirs test --sc"):
        make_table(project, "table1")
    assert not Path("results/smoke/table1.csv").exists()


def test_the_tracking_server_sees_an_evaluation_without_a_training(project: Project) -> None:
    evaluate(project)
    found = {record.key: record for record in read_records(Path("results/smoke"), project)}
    assert set(found) == {f"evaluation/{name}/seed0/test/external" for name in ("theirs", "labels")}
    record = found["evaluation/theirs/seed0/test/external"]
    assert record.parent is None and record.tags["possam.external"] == "theirs"
    assert record.parameters["trained_on"] == "coco" and "seed" not in record.parameters
    assert not {"possam.run", "possam.seed"} & record.tags.keys()
    values = {point.name: point.value for point in record.points}
    assert values["pq"] == 100.0 and values["check.panopticapi_pq"] == 100.0


def test_the_page_lists_their_scoring_and_no_training(project: Project) -> None:
    jobs = job_records(project, Layout(project))
    assert [name for name in jobs if name.startswith(("score", "train"))] == [
        *("train full, seed 5", "train full, seed 2"),
        *("score theirs on test", "score labels on test"),
    ]


def test_content_decides_what_predictions_are(project: Project, written: Path) -> None:
    def identity(name: str = "theirs") -> str:
        return hash_predictions(prediction_files(project, name, "test"))

    first, maps = identity(), identity("labels")
    for path in (written, *written.with_suffix("").iterdir()):
        path.touch()
    moved = Path(shutil.copytree(written.parent, "elsewhere"))
    paths = {"predictions": moved / written.name, "segmentations": moved / written.stem}
    assert identity() == hash_predictions(paths) == first
    png = written.with_suffix("") / "picture_3.png"
    png.write_bytes(png.read_bytes() + b"\0")
    second = identity()
    png.rename(png.with_name("picture_x.png"))
    third = identity()
    written.write_text(written.read_text() + " ")
    assert len({first, second, third, identity(), maps}) == 5


def missing_json(written: Path) -> None:
    written.unlink()


def missing_folder(written: Path) -> None:
    shutil.rmtree(written.with_suffix(""))


def cut(written: Path) -> None:
    content = read_json(written)
    content["annotations"].pop()
    written.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (missing_json, "external.yaml: theirs.predictions.test: predictions/predictions.json: no"),
        (missing_folder, "external.yaml: theirs.segmentations.test: predictions/predictions: no"),
        (cut, "1 of 6 images have no prediction"),
    ],
)
def test_refused_predictions_leave_the_earlier_result(
    project: Project,
    written: Path,
    change: Callable[[Path], None],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["evaluate", "theirs", "test", "--scale", "smoke"]
    assert cli.main(command) == 0
    results = Path("results")
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    assert len(before) == 3
    change(written)
    capsys.readouterr()
    assert cli.main(command) == 2
    assert expected in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("theirs", "test", "--seed", "5"), "--seed, --condition: theirs is external"),
        (("theirs", "test", "--condition", "untrained"), "--seed, --condition: theirs is external"),
        (("theirs", "coco"), "external.yaml: theirs.predictions: unknown benchmark 'coco'"),
        (("theirs", "test", "--scale", "mini"), "theirs.scale: its predictions are of the scale"),
    ],
)
def test_what_predictions_do_not_have(
    project: Project, options: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scale = () if "--scale" in options else ("--scale", "smoke")
    assert cli.main(["evaluate", *options, *scale]) == 2
    assert expected in capsys.readouterr().err
    assert not Path("results").exists()
