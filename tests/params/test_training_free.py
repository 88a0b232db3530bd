"""Systems that train nothing, in params/ and in the graph."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from possam.params.project import Project
from possam.params.tables import Evaluation, Origin
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError

PARAMS = Path(__file__).resolve().parents[2] / "params"
SYSTEM = {"prefix": "smoke/", "system": "sam_clip_coco", "benchmark": "ade20k"}


def test_tables_one_and_three_show_it_without_seeds() -> None:
    for scale in ("smoke", "mini", "lab", "paper"):
        project = Project(scale, folder=PARAMS)
        for name in ("table1", "table3"):
            (row,) = (row for row in project.tables[name].rows if row.source == "training_free")
            assert not row.published
            for cell in row.cells.values():
                origin = cell.origin
                assert origin == Origin(origin.run, cell.benchmark, "training_free", "default")
                key = Evaluation(origin.run, 0, cell.benchmark, "training_free")
                assert origin.evaluations((3, 4)) == [key] and not key.is_trained


def test_it_needs_no_training() -> None:
    graph = Graph(folder=PARAMS)
    target = "results/smoke/evaluations/sam_clip_coco/seed0/ade20k/training_free/evaluation.json"
    stages = {job.stage for job in graph.walk([target])}
    assert stages == {"world", "download", "convert", "training_free"}
    assert graph.inputs("training_free", SYSTEM)[:2] == [
        "data/smoke/datasets/ade20k_val/manifest.json",
        "data/smoke/datasets/coco_train/manifest.json",
    ]


@pytest.mark.parametrize(
    ("file", "edit", "remade"),
    [
        ("scales/smoke.yaml", lambda d: d["automatic_masks"].update(points_per_side=5), True),
        ("scales/smoke.yaml", lambda d: d["inference"].update(overlap_threshold=0.1), True),
        ("training_free.yaml", lambda d: d["sam_clip_coco"].update(sam="b"), True),
        ("training_free.yaml", lambda d: d["sam_clip_ade20k"].update(sam="b"), False),
        ("scales/smoke.yaml", lambda d: d["training"].update(iterations=5), False),
        ("scales/smoke.yaml", lambda d: d.update(seeds=[4]), False),
    ],
)
def test_what_decides_its_result(
    change: Callable[..., Path], file: str, edit: Callable[[Any], Any], remade: bool
) -> None:
    before = Graph(folder=PARAMS).identity("training_free", SYSTEM)
    after = Graph(folder=change(file, edit)).identity("training_free", SYSTEM)
    assert (after != before) == remade


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("training_free.yaml", lambda d: d["sam_clip_coco"].update(sam="x"), "unknown SAM size"),
        ("training_free.yaml", lambda d: d["sam_clip_coco"].update(seen="x"), "unknown training"),
        ("training_free.yaml", lambda d: d.update(possam_b_coco={"sam": "b", "seen": "coco"}),
         "another system has this name"),
        ("tables.yaml", lambda d: _row(d)["cells"]["ade"].update(training_free="x"),
         "unknown training_free 'x'.*sam_clip_ade20k, sam_clip_coco"),
        ("tables.yaml", lambda d: _row(d)["cells"]["ade"].update(run="possam_b_coco"),
         "keep one of run, external, training_free"),
        ("tables.yaml", lambda d: _row(d)["cells"]["ade"].update(variant="geometric"),
         "only CLIP classifies"),
    ],
)  # fmt: skip
def test_faults_name_file_and_remedy(
    change: Callable[..., Path], file: str, edit: Callable[[Any], Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        Project("mini", folder=change(file, edit))


def _row(tables: Any) -> Any:
    (row,) = (row for row in tables["table3"]["rows"] if row["name"].startswith("SAM + CLIP"))
    return row
