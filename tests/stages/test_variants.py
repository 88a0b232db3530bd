"""Every kind of model, from files to figures: features, training, evaluation, prediction."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from possam.cli import main
from possam.datasets.format import ConvertedDataset
from possam.model.encoders.clip import FrozenClip
from possam.model.encoders.sam import SamEncoder
from possam.model.options import CLIP
from possam.params.layout import Layout
from possam.params.project import Project
from possam.pictures.model import Size
from possam.runtime.files import read_json, sha256_file
from possam.stages.convert import convert_dataset
from possam.stages.download import download_asset
from possam.stages.evaluate import evaluate
from possam.stages.features import cache_tower_features
from possam.stages.models import load_towers
from possam.stages.predict import Source, Words, predict
from possam.stages.train import Training, prepare, train
from possam.stages.world import make_world
from possam.training.checkpoint import read_metadata
from possam.training.distributed import TrainingProcess, single_process

REPOSITORY = Path(__file__).resolve().parents[2]
IMAGES = {"coco_train": 4, "coco_val": 2}
"""Of the other parts of the world one image each."""
CLIP_FILES = ("synthetic_clip", "synthetic_clip_config", "synthetic_clip_bpe")

SEED = 0

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a world of a few images and the cached features of CLIP; SAM is not there."""
    folder = tmp_path_factory.mktemp("variants")
    shutil.copytree(REPOSITORY / "params", folder / "params")
    shutil.copytree(REPOSITORY / "data" / "towers", folder / "data" / "towers")
    scale = folder / "params" / "scales" / "smoke.yaml"
    settings = yaml.safe_load(scale.read_text())
    parts = settings["world"].keys() - {"seed"}
    settings["world"].update({part: IMAGES.get(part, 1) for part in parts})
    settings["training"].update(iterations=2, milestones=[1], batch_size=2)
    settings["evaluation"].update(bootstrap_samples=10, check_panopticapi=False)
    scale.write_text(yaml.safe_dump(settings))
    runs = folder / "params" / "runs.yaml"
    table5 = ("sam_pooling_h_coco", "clip_pooling_h_coco", "cross_attention_h_coco")
    listed = yaml.safe_load(runs.read_text())
    smaller = {name.replace("_h_", "_b_"): {**listed[name], "sam": "b"} for name in table5}
    live = {"feature_cache": False, "augmentation": {"policy": "lsj", "min_scale": 0.5}}
    encoding = {
        f"live_{name}": {**listed[name], "training": live}
        for name in ("possam_b_coco", "no_iou_b_coco", "two_way_1_b_coco")
    }
    runs.write_text(yaml.safe_dump({**listed, **smaller, **encoding}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        project = Project("smoke")
        make_world(project, workers=1)
        roles = ("train_images", "val_images", "panoptic", "instances", "class_names")
        for asset in (*(f"synthetic_coco_{role}" for role in roles), *CLIP_FILES):
            download_asset(project, asset)
        for split in ("train", "val"):
            convert_dataset(project, "coco", split, workers=1)
        cache_tower_features(project, CLIP, "coco", "train")
    return folder


@pytest.fixture
def project(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.chdir(folder)
    return Project("smoke")


@pytest.fixture
def run(project: Project) -> Callable[[str], dict[str, Any]]:
    """Trains and evaluates a run of a SAM or of none; gives its default figures."""

    def call(name: str) -> dict[str, Any]:
        tower = project.run(name).towers[0]
        if (sam := project.run(name).sam) is not None:
            download_asset(project, project.scale.towers.sam[sam].asset)
        cache_tower_features(project, tower, "coco", "train")
        train(project, [name], seed=None, device="cpu")
        evaluate(project, name, "coco", seed=None, condition="trained", device="cpu")
        folder = Layout(project).evaluation(name, SEED, "coco", "trained")
        return read_json(folder / "evaluation.json")["variants"]["default"]

    return call


def assert_trained(project: Project, name: str) -> None:
    """Weights as promised, and every one of them moved."""
    from possam.model.possam import rebuild_possam

    directory = Layout(project).run(name, SEED)
    record, weights = read_json(directory / "run.json"), directory / "weights.safetensors"
    assert record["weights_sha256"] == sha256_file(weights)
    metadata = read_metadata(weights)
    start = rebuild_possam(metadata["model"], seed=SEED)
    tensors = load_file(weights)
    assert record["trainable_parameters"] == sum(p.numel() for p in start.parameters())
    for key, value in start.named_parameters():
        assert not torch.equal(tensors[key], value), key
    for key, value in start.named_buffers():
        assert torch.equal(tensors[key], value), key


@pytest.mark.parametrize(
    "name",
    [
        "no_fpn_b_coco",
        "sam_pooling_b_coco",
        "clip_pooling_b_coco",
        "cross_attention_b_coco",
        "no_iou_b_coco",
        "two_way_1_b_coco",
        "two_way_9_b_coco",
    ],
)
def test_runs_over_sam(
    name: str, project: Project, run: Callable[[str], dict[str, Any]], folder: Path
) -> None:
    evaluation = run(name)
    assert_trained(project, name)
    assert 0 <= evaluation["metrics"]["pq"] <= 100
    frozen = read_metadata(Layout(project).run(name, SEED) / "weights.safetensors")["frozen"]
    assert frozen == {
        tower: sha256_file(folder / "data/towers" / file)
        for tower, file in (("sam", "synthetic_sam_b.pth"), (CLIP, "synthetic_clip.safetensors"))
    }


def test_fcclip_never_sees_sam(
    project: Project,
    run: Callable[[str], dict[str, Any]],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a run without SAM built one")

    monkeypatch.setattr(SamEncoder, "__init__", refuse)
    records = folder / "data/smoke/assets"
    hidden = [path.rename(path.with_suffix(".away")) for path in records.glob("synthetic_sam_*")]
    try:
        evaluation = run("fcclip_coco")
        weights = Layout(project).run("fcclip_coco", SEED) / "weights.safetensors"
        Image.new("RGB", (96, 64), (200, 30, 30)).save(folder / "photo.png")
        done = predict(
            [str(folder / "photo.png")],
            words=Words(text="red; green"),
            source=Source(checkpoint=str(weights)),
            out=folder / "out",
            device="cpu",
            size=Size(),
            batch_size=1,
            export=[],
        )
        assert done == 0
    finally:
        for path in hidden:
            path.rename(path.with_suffix(".json" if "record" in path.name else ".pth"))
    assert_trained(project, "fcclip_coco")
    assert 0 <= evaluation["metrics"]["pq"] <= 100
    assert (folder / "out" / "panoptic.json").is_file()
    clip = sha256_file(folder / "data/towers/synthetic_clip.safetensors")
    assert read_metadata(weights)["frozen"] == {CLIP: clip}
    assert set(read_json(weights.with_name("run.json"))["inputs"]) == {"dataset", CLIP}


def test_runs_trained_together_end_as_by_themselves(
    project: Project, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On augmented crops, which SAM and CLIP encode only once for all three."""
    download_asset(project, "synthetic_sam_b")
    names = ["live_possam_b_coco", "live_no_iou_b_coco", "live_two_way_1_b_coco"]
    folders = {name: Layout(project).run(name, SEED) for name in names}
    encoded, encode = [], SamEncoder.forward

    def counting(self: SamEncoder, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(SamEncoder, "forward", counting)
    alone = {}
    for name in names:
        train(project, [name], seed=None, device="cpu")
        alone[name] = sha256_file(folders[name] / "weights.safetensors")
        shutil.rmtree(folders[name])
    by_itself = len(encoded)
    assert main(["train", *names, "--scale", "smoke"]) == 0
    assert len(encoded) - by_itself == by_itself / 3
    for name in names:
        assert sha256_file(folders[name] / "weights.safetensors") == alone[name]
        assert read_json(folders[name] / "run.json")["run"] == name
        assert read_json(folders[name] / "training.json")["together"] == 3
        assert read_json(folders[name] / "provenance.json")["stage"] == "train"
        assert_trained(project, name)
    assert main(["train", *names, "--scale", "smoke"]) == 0  # nothing to do
    assert len(encoded) - by_itself == by_itself / 3


def test_runs_that_read_other_features_are_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    for other, field in (
        ("possam_h_coco", "sam is b and h"),
        ("possam_b_ade20k", "train is coco and ade20k"),
        ("possam_b_coco", "training.augmentation is"),
    ):
        assert main(["train", "live_no_iou_b_coco", other, "--scale", "smoke"]) == 2
        assert field in capsys.readouterr().err


def test_a_training_s_driver_does_not_read_the_annotations(project: Project, folder: Path) -> None:
    """At the paper's scale they are a hundred megabytes."""
    download_asset(project, "synthetic_sam_b")
    annotations = folder / "data/smoke/datasets/coco_train/annotations.json"
    hidden = annotations.rename(annotations.with_suffix(".away"))
    try:
        training = Training(project, "possam_b_coco", seed=None)
        assert training.on("cpu")["inputs"]["dataset"]
        assert len(training.vocabulary) == len(
            ConvertedDataset.open(folder / "data/smoke/datasets/coco_val").vocabulary
        )
    finally:
        hidden.rename(annotations)


def test_only_the_first_process_embeds_the_names(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    download_asset(project, "synthetic_sam_b")
    training = Training(project, "possam_b_coco", seed=None)
    training.identity = training.on("cpu")
    sam, clip = load_towers(training.layout, "b")
    calls = []
    encode = FrozenClip.encode_text

    def counting(self: FrozenClip, texts: list[str]) -> torch.Tensor:
        calls.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(FrozenClip, "encode_text", counting)
    shutil.rmtree(training.layout.text, ignore_errors=True)
    first = prepare(training, single_process("cpu"), sam=sam, clip=clip)
    assert len(calls) == 1

    class Second(TrainingProcess):
        def first(self, work: Any) -> Any:
            return first.text  # as sent by process 0

    shutil.rmtree(training.layout.text)
    second = Second(device=torch.device("cpu"), rank=1, world_size=2)
    assert prepare(training, second, sam=sam, clip=clip).text is first.text
    assert len(calls) == 1
