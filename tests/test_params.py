"""Parameters: what is in the repository is valid; what is wrong is told with file, key, choices."""

import shutil
from pathlib import Path

import pytest
import yaml

from possam.errors import InputError
from possam.params import Project, merge, read_yaml

REPOSITORY = Path(__file__).resolve().parents[1]


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


def test_no_shipped_run_starts_from_a_checkpoint(folder: Path) -> None:
    for scale in ("smoke", "mini", "paper"):
        runs = Project(scale, folder=folder).runs.values()
        assert [run.start_from for run in runs] == [None] * len(runs)


def test_merge_goes_down_into_mappings_only() -> None:
    assert merge({"a": {"x": 1, "y": 2}, "b": [1]}, {"a": {"y": 3}, "b": [2]}) == {
        "a": {"x": 1, "y": 3},
        "b": [2],
    }


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
            lambda d: d.update(bad={"sam": "b", "train": "coco", "start_from": "nothing"}),
            ["runs.yaml: bad.start_from", "'nothing'", "sam_vit_b"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["rows"][-1]["cells"]["coco_ade"].update(run="possam_x"),
            ["tables.yaml", "PosSAM (H)", "'possam_x'", "possam_h_coco"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["columns"][0].update(metric="pqq"),
            ["tables.yaml", "coco_ade_pq", "'pqq'", "pq_unseen"],
        ),
        (
            "tables.yaml",
            lambda d: d["table1"]["rows"].append({"name": "ODISE"}),
            ["two rows", "'ODISE'"],
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
