"""The test sets that only have label maps, through the rules and the command line."""

import shutil

import pytest

from possam.runtime.files import read_json
from tests.whole.conftest import Workspace
from tests.whole.test_bad_input import refused
from tests.whole.test_smoke import edited

pytestmark = pytest.mark.pipeline

CLASSES = {"ade20k_full": 80, "pascal_context_459": 51}


def test_their_benchmarks_run_by_the_rules(finished: Workspace) -> None:
    folders = {
        name: finished.folder / f"results/smoke/evaluations/possam_b_coco/seed0/{name}"
        for name in CLASSES
    }
    targets = [
        str((folder / "trained/evaluation.json").relative_to(finished.folder))
        for folder in folders.values()
    ]
    finished.snakemake(*targets)
    assert "Nothing to be done" in finished.snakemake(*targets)
    for name, folder in folders.items():
        result = read_json(folder / "trained/evaluation.json")
        assert set(result["variants"]["default"]["metrics"]) == {"miou", "miou_union"}
        counts = result["counts"]
        assert (counts["classes"], counts["seen"]) == (CLASSES[name], 34)
        assert (counts["images"], counts["things"]) == (12, 0)
        shutil.rmtree(folder)


def test_they_cannot_be_trained_on(finished: Workspace) -> None:
    old = "possam_l_coco: {sam: l, train: coco}"
    with edited(finished.folder / "params/runs.yaml", old, old.replace("coco}", "ade20k_full}")):
        message = refused(finished, "train", "possam_l_coco", "--scale", "smoke")
    assert "possam_l_coco: train: " in message and "valid choices: ade20k, coco" in message
    message = refused(finished, "convert", "pascal_context_459", "train", "--scale", "smoke")
    assert "no split 'train'; valid choices: val" in message


def test_a_damaged_label_map_leaves_the_converted_data_set(finished: Workspace) -> None:
    convert = ("convert", "pascal_context_459", "val", "--scale", "smoke")
    target = "data/smoke/datasets/pascal_context_459_val/manifest.json"
    finished.snakemake(target)
    kept = (finished.folder / target).read_bytes()
    raw = finished.folder / "data/smoke/raw/synthetic_pascal_context/trainval"
    mat = sorted(raw.glob("*.mat"))[3]
    good = mat.read_bytes()
    mat.write_bytes(good[:-10])
    try:
        done = finished.possam(*convert, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert mat.name in done.stderr and "MATLAB" in done.stderr
        assert (finished.folder / target).read_bytes() == kept
    finally:
        mat.write_bytes(good)
    finished.possam(*convert)
    assert (finished.folder / target).read_bytes() == kept
