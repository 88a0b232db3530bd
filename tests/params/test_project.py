"""Parameters: what is in the repository is valid; what is wrong is told with file, key, choices."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.params.project import Project
from possam.params.reading import merge
from possam.params.yaml import read_yaml
from possam.runtime.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(REPOSITORY / "params", tmp_path / "params"))


def edit(path: Path, change) -> None:
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_every_scale_is_valid(folder: Path, scale: str) -> None:
    project = Project(scale, folder=folder)
    assert set(project.runs) == set(yaml.safe_load((folder / "runs.yaml").read_text()))
    assert project.variants["default"] == project.scale.inference
    assert project.prefix == ("" if scale == "paper" else f"{scale}/")


def test_the_paper_scale_has_the_papers_numbers(folder: Path) -> None:
    run = Project("paper", folder=folder).run("possam_h_coco")
    assert (run.training.iterations, run.training.batch_size) == (250_000, 16)
    assert run.training.milestones == (150_000, 200_000)
    assert (run.training.learning_rate, run.training.weight_decay) == (1e-4, 0.05)
    assert (run.loss.class_weight, run.loss.bce_weight, run.loss.iou_weight) == (2.0, 5.0, 1.0)
    assert (run.model.queries, run.model.decoder_layers, run.model.hidden_dim) == (250, 9, 256)
    assert len(run.templates) == 14


def test_a_run_is_its_difference_from_the_defaults(folder: Path) -> None:
    (folder / "runs.yaml").open("a").write(
        "no_ldp: {sam: b, train: coco, model: {pooling: clip}}\n"
    )
    project = Project("mini", folder=folder)
    full, ablation = project.run("possam_b_coco"), project.run("no_ldp")
    assert ablation.model.pooling == "clip"
    assert ablation.model_copy(update={"model": full.model}) == full


def test_a_variant_is_its_difference_from_the_scales_inference(folder: Path) -> None:
    project = Project("paper", folder=folder)
    expected = project.scale.inference.model_copy(update={"ensemble": "geometric"})
    assert project.variants["geometric"] == expected


def test_the_variants_of_an_evaluation_are_the_default_and_those_that_tables_ask_for(
    folder: Path,
) -> None:
    def ask(data) -> None:
        rows = {row["name"]: row for row in data["table1"]["rows"]}
        rows["PosSAM (B)"]["cells"]["coco_ade"]["variant"] = "ldp_only"
        data["table1"]["controls"][0]["variant"] = "clip_only"
        cell = {"run": "possam_b_coco", "benchmark": "ade20k", "variant": "geometric"}
        data["other"] = {**data["table1"], "controls": []}
        data["other"]["rows"] = [{"name": "FC-CLIP", "cells": {"coco_ade": cell}}]
        del data["other"]["reference"], data["other"]["budget"]
        for number in range(2, 9):
            del data[f"table{number}"]

    place = ("possam_b_coco", "ade20k", "trained")
    plain = ["mase_plain", "geometric_plain"]
    shown = list(Project("mini", folder=folder).variants_at(*place))
    assert shown == ["default", "geometric", *plain]
    edit(folder / "tables.yaml", ask)
    project = Project("mini", folder=folder)
    found = project.variants_at(*place)
    assert list(found) == ["default", "geometric", "ldp_only"], "in the order of variants.yaml"
    assert found["ldp_only"] == project.variants["ldp_only"]
    assert list(project.variants_at("possam_b_coco", "ade20k", "untrained")) == [
        "default",
        "clip_only",
    ]
    assert list(project.variants_at("possam_b_ade20k", "coco", "trained")) == ["default"]


def test_a_run_may_have_a_test_resolution_of_its_own(folder: Path) -> None:
    """FC-CLIP's 800 / 1333 beside 1024 / 2560; what is trained does not depend on it."""
    project = Project("paper", folder=folder)
    size = {}
    for run in ("fcclip_coco", "possam_b_coco"):
        (found,) = {v.resolution for v in project.variants_at(run, "ade20k", "trained").values()}
        size[run] = (found.size, found.max_size)
    assert size == {"fcclip_coco": (800, 1333), "possam_b_coco": (1024, 2560)}
    assert "test_resolution" not in project.run("fcclip_coco").model_dump()
    edit(folder / "runs.yaml", lambda d: d["fcclip_coco"].update(test_resolution="odise"))
    with pytest.raises(InputError, match=r"fcclip_coco\.test_resolution.*valid choices: fcclip"):
        _ = Project("mini", folder=folder).runs


def test_every_run_takes_the_scales_seeds(folder: Path) -> None:
    edit(folder / "scales/mini.yaml", lambda d: d.update(seeds=[3, 0]))
    project = Project("mini", folder=folder)
    assert project.run("possam_b_coco") == project.run("possam_b_coco", seed=3)
    first, second = (project.run("possam_b_coco", seed=seed) for seed in (3, 0))
    assert (first.seed, second.seed) == (3, 0)
    assert first.model_copy(update={"seed": 0}) == second
    with pytest.raises(InputError, match=r"mini\.yaml: seeds: unknown seed '1'.*choices: 0, 3"):
        project.run("possam_b_coco", seed=1)
    keys = project.tables["table1"].evaluations(project.scale.seeds)
    trained = [key for key in keys if key.is_trained]
    assert len(keys) == len(set(keys)) and len(trained) == 24, "twelve evaluations per seed"
    assert {key.seed for key in keys if not key.is_trained} == {0}, "they depend on no seed"


def test_no_shipped_run_starts_from_a_checkpoint(folder: Path) -> None:
    for scale in ("smoke", "mini", "paper"):
        runs = Project(scale, folder=folder).runs.values()
        assert [run.start_from for run in runs] == [None] * len(runs)


def test_merge_goes_down_into_mappings_only() -> None:
    assert merge({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]}) == {
        "a": {"x": 1, "y": 3},
        "b": [2],
    }


def last_cells(data: dict[str, Any]) -> dict[str, Any]:
    """The cells of Table 1's last row that has some: PosSAM (H)."""
    return next(row["cells"] for row in reversed(data["table1"]["rows"]) if "cells" in row)


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            "scales/mini.yaml",
            lambda d: d["model"].update(quieres=3),
            ["mini.yaml", "model.quieres", "valid keys", "queries"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["loss"].update(bce_weight="five"),
            ["mini.yaml", "loss.bce_weight", "'five'"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["loss"].pop("dice_weight"),
            ["mini.yaml", "loss.dice_weight", "required"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["training"]["augmentation"].update(policy="lsj"),
            ["feature_cache", "flip"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["training"].update(micro_batch=5),
            ["mini.yaml", "batch_size 6", "multiple of micro_batch 5"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["towers"]["sam"]["b"].update(asset="nothing"),
            ["towers.sam.b.asset", "'nothing'", "synthetic_sam_b"],
        ),
        ("scales/mini.yaml", lambda d: d["model"].update(heads=7), ["hidden_dim", "multiple"]),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "b", "train": "coco", "modle": {}}),
            ["runs.yaml: bad", "modle", "valid keys", "model"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "xl", "train": "coco"}),
            ["bad.sam", "'xl'", "b, h, l"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": None, "train": "coco"}),
            ["runs.yaml: bad", "sam: null", "model.backbone: sam", "sam names a size"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={**d["fcclip_coco"], "sam": "b"}),
            ["runs.yaml: bad", "sam: b", "model.backbone: clip", "needs sam: null"],
        ),
        (
            "runs.yaml",
            lambda d: d["fcclip_coco"]["model"].update(pyramid="fpn"),
            ["fcclip_coco", "pyramid 'fpn'", "backbone: clip", "valid choices: stages"],
        ),
        (
            "runs.yaml",
            lambda d: d["no_fpn_b_coco"]["model"].update(pyramid=None),
            ["no_fpn_b_coco", "pyramid None", "decoder: mask2former", "fpn, resample"],
        ),
        (
            "runs.yaml",
            lambda d: d["two_way_9_b_coco"]["model"].pop("pyramid"),
            ["two_way_9_b_coco", "pyramid 'fpn'", "decoder: two_way", "valid choices: null"],
        ),
        (
            "runs.yaml",
            lambda d: d["two_way_9_b_coco"]["model"].pop("pixel_encoder_layers"),
            ["two_way_9_b_coco", "no pixel decoder", "pixel_encoder_layers: 0"],
        ),
        (
            "runs.yaml",
            lambda d: d["two_way_9_b_coco"]["model"].update(hidden_dim=36),
            ["two_way_9_b_coco", "hidden_dim divisible by 2 * heads and 8"],
        ),
        (
            "runs.yaml",
            lambda d: d["fcclip_coco"]["model"].update(decoder="two_way"),
            ["fcclip_coco", "reads SAM's one map", "backbone: sam"],
        ),
        (
            "runs.yaml",
            lambda d: d["fcclip_coco"]["model"].update(region_features="neck"),
            ["fcclip_coco", "region_features: neck", "mask_features and queries"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "b", "train": "coco", "start_from": "nothing"}),
            ["runs.yaml: bad.start_from", "'nothing'", "sam_vit_b", "possam_b_coco"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(
                one={"sam": "b", "train": "coco", "start_from": "two"},
                two={"sam": "b", "train": "coco", "start_from": "one"},
            ),
            ["start_from: one -> two -> one: a circle"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(
                sam_vit_b={"sam": "b", "train": "coco"},
                bad={"sam": "b", "train": "coco", "start_from": "sam_vit_b"},
            ),
            ["bad.start_from", "sam_vit_b is an asset and a run"],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d)["coco_ade"].update(run="possam_x"),
            ["tables.yaml", "PosSAM (H)", "coco_ade.run", "'possam_x'", "possam_h_coco"],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d)["coco_ade"].pop("run"),
            ["tables.yaml: table1", "cells.coco_ade.run", "required", "possam_b_ade20k,"],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d)["coco_ade"].update(run=5),
            ["tables.yaml: table1", "cells.coco_ade.run", "string", "possam_b_ade20k,"],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d)["coco_ade"].update(benchmark="voc"),
            [
                "tables.yaml",
                "PosSAM (H)",
                "coco_ade.benchmark",
                "'voc'",
                "ade20k, ade20k_full, coco",
            ],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d)["coco_ade"].update(variant="geometry"),
            ["tables.yaml", "PosSAM (H)", "coco_ade.variant", "'geometry'", "geometric, "],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["controls"][1].update(run="possam_x"),
            ["tables.yaml", "class names shuffled", "'possam_x'", "possam_h_coco"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["controls"][1].update(variant="x"),
            ["tables.yaml", "class names shuffled", "variant", "'x'", "ldp_only"],
        ),
        (
            "tables.yaml",
            lambda d: last_cells(d).update(ade={"run": "x", "benchmark": "y"}),
            ["tables.yaml", "PosSAM (H)", "column group", "'ade'", "ade_coco, coco_ade"],
        ),
        (
            "benchmarks.yaml",
            lambda d: d["coco"].update(metrics=["panoptic", "semantic"]),
            ["tables.yaml", "SAM + CLIP", "'coco' does not measure 'map'", "benchmarks.yaml"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["columns"][0].update(metric="pqq"),
            ["tables.yaml", "coco_ade_pq", "'pqq'", "pq_unseen"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["rows"].append({"name": "ODISE"}),
            ["tables.yaml: table1.rows", "two rows", "'ODISE'"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["columns"].append(d["table1"]["columns"][0]),
            ["tables.yaml: table1.columns", "two columns", "'coco_ade_pq'"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["controls"].append(d["table1"]["controls"][0]),
            ["tables.yaml: table1.controls", "two controls", "not trained"],
        ),
        (
            "variants.yaml",
            lambda d: d.update(bad={"ensamble": "ldp"}),
            ["variants.yaml: bad", "ensamble", "valid keys", "ensemble"],
        ),
        (
            "variants.yaml",
            lambda d: d.update(bad={"ensemble": "mean"}),
            [
                "variants.yaml: bad",
                "ensemble",
                "'mean'",
                "valid choices: mase, geometric, ldp, clip",
            ],
        ),
        (
            "variants.yaml",
            lambda d: d.update(large={"resolution": {"size": 512}}),
            ["variants.yaml: large.resolution", "one forward pass", "valid keys: alpha, beta"],
        ),
        ("variants.yaml", lambda d: d.update(default={"alpha": 0.1}), ["default: must be"]),
        ("variants.yaml", lambda d: d.pop("default"), ["variants.yaml: default: must be there"]),
        (
            "variants.yaml",
            lambda d: d.update(bad="ldp"),
            ["variants.yaml: bad: a mapping is expected", "'ldp'"],
        ),
        (
            "runs.yaml",
            lambda d: d.update({"no/ldp": {"sam": "b", "train": "coco"}}),
            ["runs.yaml", "'no/ldp'", "letters, digits and _"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "b", "train": "coco", "seed": 1}),
            ["runs.yaml: bad", "seed", "valid keys: loss, model, sam"],
        ),
        ("scales/mini.yaml", lambda d: d.update(seeds=[]), ["mini.yaml", "seeds", "at least 1"]),
        ("scales/mini.yaml", lambda d: d.update(seeds=[0, 0]), ["mini.yaml", "written twice"]),
        ("scales/mini.yaml", lambda d: d.update(seeds=0), ["mini.yaml", "seeds", "got 0"]),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "b", "train": "pascal_context_459"}),
            ["bad: train", "no training split", "'pascal_context_459'", "choices: ade20k, coco"],
        ),
        (
            "runs.yaml",
            lambda d: d.update(bad={"sam": "b", "train": "voc"}),
            ["bad: train", "unknown data set", "'voc'", "pascal_context_459"],
        ),
        (
            "benchmarks.yaml",
            lambda d: d["ade20k_full"].update(split="train"),
            ["benchmarks.yaml: ade20k_full", "split", "'train'", "valid choices: val"],
        ),
        (
            "benchmarks.yaml",
            lambda d: d["pascal_context_459"]["metrics"].append("panoptic"),
            ["pascal_context_459", "metrics", "'panoptic'", "valid choices: semantic"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["assets"].pop("pascal_voc_2010"),
            ["mini.yaml", "assets.pascal_voc_2010", "pascal_context_459 needs it"],
        ),
        (
            "scales/mini.yaml",
            lambda d: d["assets"].update(voc="synthetic_pascal_voc_2010"),
            ["mini.yaml", "unknown role 'voc'", "pascal_voc_2010"],
        ),
        (
            "benchmarks.yaml",
            lambda d: d["coco"].update(split="test"),
            ["benchmarks.yaml: coco", "split", "'test'"],
        ),
        (
            "assets.yaml",
            lambda d: d["sam_vit_b"].update(sha=1),
            ["assets.yaml: sam_vit_b", "sha", "valid keys", "checksum"],
        ),
    ],
)
def test_wrong_parameters_are_told_with_file_key_and_choices(
    folder: Path, file: str, change, expected: list[str]
) -> None:
    edit(folder / file, change)
    with pytest.raises(InputError) as error:
        _ = Project("mini", folder=folder).runs
    for part in expected:
        assert part in str(error.value)


def test_an_unknown_scale_is_told_with_the_choices(folder: Path) -> None:
    with pytest.raises(InputError, match=r"'maxi'.*mini, paper, smoke"):
        Project("maxi", folder=folder)


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(InputError, match="'a' is written twice"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", ""])
def test_what_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"bad\.yaml"):
        read_yaml(path)


def test_parameters_are_immutable(folder: Path) -> None:
    project = Project("mini", folder=folder)
    with pytest.raises(ValueError, match="frozen"):
        project.scale.loss.bce_weight = 0.0  # type: ignore[misc]
