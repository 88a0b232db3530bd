"""Error budgets in params/: what tables ask for, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from possam.params.project import Project
from possam.params.tables import Evaluation, Origin
from possam.pipeline.graph import Graph
from possam.runtime.errors import InputError

PARAMS = Path(__file__).resolve().parents[2] / "params"


def test_every_table_has_the_budget_of_its_reference_row() -> None:
    project = Project("mini", folder=PARAMS)
    for name, table in project.tables.items():
        assert table.budget, name
        for group in table.budget:
            origins = table.budget_of(group)
            measured = origins["measured"]
            assert list(origins) == [
                *("measured", "ground_truth_masks", "oracle_labels", "closed_set")
            ]
            assert origins["oracle_labels"] == measured._replace(variant="oracle_labels")
            trained = project.run(measured.run).train
            assert project.benchmarks[origins["closed_set"].benchmark].dataset == trained
            assert project.has_budget(measured.run, measured.benchmark, "trained")
            assert {*origins.values()} <= {*table.origins()}
    assert not project.has_budget("fcclip_coco", "ade20k", "trained")
    assert not project.has_budget("possam_b_coco", "ade20k", "shuffled_names")


def test_the_closed_set_is_one_evaluation_more() -> None:
    table = Project("mini", folder=PARAMS).tables["table3"]
    assert Evaluation("possam_h_coco", 0, "coco", "trained") in table.evaluations((0,))
    origin = Origin("possam_h_coco", "ade20k", "trained", "oracle_labels")
    assert origin.evaluations((0,)) == [Evaluation("possam_h_coco", 0, "ade20k", "trained")]


def test_an_evaluation_is_made_again_when_a_budget_is_asked_of_it(
    change: Callable[..., Path],
) -> None:
    where = {"prefix": "smoke/", "run": "possam_h_coco", "seed": "0"}
    where |= {"benchmark": "pascal_context_459", "condition": "trained"}
    before = Graph(folder=PARAMS).identity("evaluate", where)
    without = change("tables.yaml", lambda d: d["table2"]["budget"].pop("pc459"))
    assert Graph(folder=without).identity("evaluate", where) != before


def test_a_scale_without_the_closed_set_keeps_its_tables(change: Callable[..., Path]) -> None:
    folder = change("scales/smoke.yaml", lambda d: d["assets"].pop("coco_val_images"))
    project = Project("smoke", folder=folder)
    assert project.tables["table3"].budget == {} and "table1" in project.unserved


@pytest.mark.parametrize(
    ("file", "edit", "expected"),
    [
        ("tables.yaml", lambda d: d["table3"]["budget"].update(ade="ade20k"),
         "table3.budget.ade: 'ade20k' is a test set of ade20k, but possam_h_coco is trained on"),
        ("tables.yaml", lambda d: d["table3"]["budget"].update(ade="nowhere"), "'nowhere'"),
        ("tables.yaml", lambda d: d["table3"]["budget"].update(other="coco"),
         "table3.budget.other: the reference row shows no run there"),
        ("tables.yaml", lambda d: d["table3"].update(reference="FC-CLIP"),
         "default inference variant"),
        ("variants.yaml", lambda d: d.update(oracle_labels={"alpha": 0.1}),
         "oracle_labels: a probe of the error budget has this name"),
    ],
)  # fmt: skip
def test_faults_name_file_and_remedy(
    change: Callable[..., Path], file: str, edit: Callable[[Any], Any], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        Project("mini", folder=change(file, edit))
