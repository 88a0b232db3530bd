"""Bad input at the command line: one clear message, exit code 2, nothing half-written."""

import shutil
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from possam.params.layout import RUN_LOCK
from possam.runtime.locks import hold
from tests.whole.conftest import Workspace
from tests.whole.test_smoke import edited

pytestmark = pytest.mark.pipeline

WEIGHTS = "results/smoke/runs/possam_b_coco/seed0/weights.safetensors"


def refused(workspace: Workspace, *command: str) -> str:
    """Run a command that must be refused; its message."""
    before = workspace.files()
    done = workspace.possam(*command, check=False)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert workspace.files() == before
    return done.stderr


@pytest.fixture
def photograph(finished: Workspace) -> Path:
    path = finished.folder / "photo.jpg"
    Image.effect_noise((90, 70), 60).convert("RGB").save(path)
    return path


def test_unknown_parameter_key(finished: Workspace) -> None:
    with edited(finished.folder / "params/scales/smoke.yaml", "queries:", "quieres:"):
        message = refused(finished, "train", "possam_b_coco", "--scale", "smoke")
    assert "smoke.yaml" in message and "quieres" in message and "valid keys" in message


def test_unknown_parameter_key_stops_snakemake_before_any_job(finished: Workspace) -> None:
    with edited(finished.folder / "params/scales/smoke.yaml", "queries:", "quieres:"):
        done = finished.run("snakemake", "-n", "results/smoke/table1.csv", check=False)
    assert done.returncode != 0 and "model.quieres" in done.stdout + done.stderr


def test_a_row_that_was_never_published_stops_snakemake_before_any_job(
    finished: Workspace,
) -> None:
    with edited(finished.folder / "params/tables.yaml", "name: FreeSeg", "name: FreeSag"):
        done = finished.run("snakemake", "-n", "results/smoke/table1.csv", check=False)
        message = refused(finished, "check")
    assert done.returncode != 0 and "no row for 'FreeSag'" in done.stdout + done.stderr
    assert "table1_panoptic.csv" in message and "no row for 'FreeSag'" in message


def test_unknown_names(finished: Workspace) -> None:
    assert "possam_h_coco" in refused(finished, "train", "nothing", "--scale", "smoke")
    assert "sam_vit_b" in refused(finished, "download", "nothing", "--scale", "smoke")
    assert "ade20k" in refused(finished, "evaluate", "possam_b_coco", "nothing", "--scale", "smoke")
    assert "table1" in refused(finished, "table", "table99", "--scale", "smoke")
    for command in (("train", "possam_b_coco"), ("evaluate", "possam_b_coco", "ade20k")):
        message = refused(finished, *command, "--seed", "7", "--scale", "smoke")
        assert "smoke.yaml: seeds: unknown seed '7'; valid choices: 0" in message
    assert "mini, paper, smoke" in refused(finished, "train", "x", "--scale", "huge")


def test_missing_asset(finished: Workspace) -> None:
    record = finished.folder / "data/smoke/assets/synthetic_sam_b.record.json"
    moved = record.rename(record.with_suffix(".away"))
    try:
        message = refused(finished, "train", "possam_b_coco", "--scale", "smoke")
    finally:
        moved.rename(record)
    assert "synthetic_sam_b" in message and "possam download synthetic_sam_b" in message


def test_wrong_checksum(finished: Workspace) -> None:
    tower = finished.folder / "data/towers/synthetic_sam_b.pth"
    good = tower.read_bytes()
    fetched = finished.folder / "data/smoke/assets/synthetic_sam_b.pth"
    copies = [
        path.rename(path.with_suffix(path.suffix + ".away"))
        for path in (fetched, fetched.with_suffix(".record.json"))
    ]
    tower.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        message = refused(finished, "download", "synthetic_sam_b", "--scale", "smoke")
    finally:
        tower.write_bytes(good)
        for copy in copies:
            copy.rename(copy.with_suffix(""))
    assert "synthetic_sam_b.pth" in message and "checksum" in message.lower()


def test_truncated_archive(finished: Workspace, tmp_path: Path) -> None:
    archive = finished.folder / "data/smoke/assets/train2017.zip"
    good, target = archive.read_bytes(), tmp_path / "out"
    archive_copy = tmp_path / "cut.zip"
    archive_copy.write_bytes(good[: len(good) // 2])
    assert zipfile.is_zipfile(archive) and not target.exists()
    code = (
        "import sys; from pathlib import Path; from possam.assets.archives import unpack\n"
        "from possam.runtime.errors import InputError\n"
        "try: unpack(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except InputError as error: print(error); sys.exit(2)\n"
    )
    done = finished.run("python", "-c", code, str(archive_copy), str(target), check=False)
    assert done.returncode == 2 and "cut.zip" in done.stdout
    assert not target.exists() and list(tmp_path.iterdir()) == [archive_copy]


def test_truncated_image(finished: Workspace) -> None:
    raw = finished.folder / "data/smoke/raw/synthetic_coco_val_images/val2017"
    image = sorted(raw.glob("*.jpg"))[0]
    good = image.read_bytes()
    manifest = finished.folder / "data/smoke/datasets/coco_val/manifest.json"
    kept = manifest.read_bytes()
    image.write_bytes(good[: len(good) // 2])
    try:
        done = finished.possam("convert", "coco", "val", "--scale", "smoke", check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert image.name in done.stderr
    finally:
        image.write_bytes(good)
        finished.possam("convert", "coco", "val", "--scale", "smoke")
    assert manifest.read_bytes() == kept


def test_wrong_sam_variant(finished: Workspace) -> None:
    old = "b: {architecture: synthetic_b, asset: synthetic_sam_b}"
    new = "b: {architecture: synthetic_h, asset: synthetic_sam_b}"
    with edited(finished.folder / "params/scales/smoke.yaml", old, new):
        # One that is not trained yet: a finished run loads no tower.
        message = refused(finished, "train", "no_iou_b_coco", "--scale", "smoke")
    assert "synthetic_b" in message and "synthetic_h" in message


def test_weights_of_another_tower(finished: Workspace, photograph: Path) -> None:
    command = ("predict", str(photograph), "--words", "cat", "--checkpoint", WEIGHTS)
    message = refused(finished, *command, "--scale", "paper", "--out", "out")
    assert "download" in message or "tower" in message.lower()


@pytest.mark.parametrize("words", ["", " ; ", " , ; "])
def test_bad_words(finished: Workspace, photograph: Path, words: str) -> None:
    command = ("predict", str(photograph), "--words", words, "--checkpoint", WEIGHTS)
    assert "words" in refused(finished, *command, "--scale", "smoke", "--out", "out")


def test_unreadable_photograph(finished: Workspace, photograph: Path) -> None:
    cut = photograph.with_name("cut.jpg")
    cut.write_bytes(photograph.read_bytes()[:200])
    text = photograph.with_name("text.jpg")
    text.write_text("not a picture")
    for path in (cut, text, photograph.with_name("absent.jpg")):
        command = ("predict", str(path), "--words", "cat", "--checkpoint", WEIGHTS)
        message = refused(finished, *command, "--scale", "smoke", "--out", "out")
        assert path.name in message


def test_unreadable_checkpoint(finished: Workspace, photograph: Path) -> None:
    cut = finished.folder / "cut.safetensors"
    cut.write_bytes((finished.folder / WEIGHTS).read_bytes()[:1000])
    for path in (cut, finished.folder / "absent.safetensors"):
        command = ("predict", str(photograph), "--words", "cat", "--checkpoint", str(path))
        assert path.name in refused(finished, *command, "--scale", "smoke", "--out", "out")


def test_random_weights_only_when_asked_for_by_name(finished: Workspace, photograph: Path) -> None:
    done = finished.possam("predict", str(photograph), "--words", "cat", "--out", "out")
    assert "WARNING" in done.stderr and "--checkpoint" in done.stderr
    assert "the shipped possam_h_coco is used" in done.stderr and "random" not in done.stderr
    done = finished.possam(
        *("predict", str(photograph), "--words", "cat; dog", "--random-init", "--sam", "b"),
        *("--scale", "smoke", "--out", "out/random"),
    )
    assert "WARNING" in done.stderr and "random" in done.stderr
    shutil.rmtree(finished.folder / "out")


def test_one_process_trains_a_run(finished: Workspace) -> None:
    directory = finished.folder / "results/smoke/runs/possam_b_coco/seed0"
    with hold(directory / RUN_LOCK, timeout=0):
        message = refused(finished, "train", "possam_b_coco", "--scale", "smoke")
    assert "results/smoke/runs/possam_b_coco/seed0: another process trains this run" in message


def test_a_scale_without_a_world(finished: Workspace) -> None:
    assert "real data" in refused(finished, "world", "--scale", "paper")


def test_cuda_is_never_replaced_silently(finished: Workspace) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    message = refused(finished, "train", "possam_b_coco", "--scale", "smoke", "--device", "cuda")
    assert "cuda" in message and "cpu" in message
