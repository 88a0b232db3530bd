"""The exported graphs against PyTorch, on scenes of the mini world."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from possam.pictures.files import shipped_models, shipped_project
from possam.pictures.load import random_model
from possam.pictures.model import Model
from possam.pictures.onnx_export import export_onnx
from possam.runtime.files import read_json
from possam.synthetic.scenes import render_scenes
from possam.synthetic.vocabulary import domain_classes
from tests.support.pages import REPOSITORY

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")

pytestmark = pytest.mark.slow

SCENES = 20


@pytest.fixture(scope="module")
def model() -> Model:
    import possam

    if "possam_b_coco" not in shipped_models():
        pytest.skip("possam_b_coco is not shipped")
    loaded = possam.load("possam_b_coco")
    loaded.segmenter.features.dtype = torch.float32  # as the graphs
    return loaded


@pytest.fixture(scope="module")
def vocabulary(model: Model) -> Any:
    classes = domain_classes("b")
    return model.vocabulary(
        [each.names for each in classes], stuff=[c.name for c in classes if not c.is_thing]
    )


@pytest.fixture(scope="module")
def folder(model: Model, vocabulary: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export_onnx(model, folder, vocabulary=vocabulary)
    return folder


def run_graphs(folder: Path, images: torch.Tensor) -> dict[str, Any]:
    """Everything that the graphs compute, by name."""
    values = {"images": images.numpy(), **np.load(folder / "vocabulary.npz")}
    for name, ports in read_json(folder / "model.json")["graphs"].items():
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        inputs = {key: values[key] for key in ports["inputs"]}
        values |= dict(zip(ports["outputs"], session.run(ports["outputs"], inputs), strict=True))
    return values


@pytest.fixture(scope="module")
def example(folder: Path) -> Callable[[Image.Image], Any]:
    """The program in docs/onnx.md."""
    page = (REPOSITORY / "docs/onnx.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/onnx.md", "exec"), names)
    loaded = names["load"](folder)
    return lambda picture: names["segment"](picture, *loaded)


def test_the_segments_of_twenty_scenes_are_those_of_pytorch(
    model: Model, vocabulary: Any, example: Callable[[Image.Image], Any]
) -> None:
    found = 0
    for scene in render_scenes(SCENES, domain="b", split="val", seed=3):
        expected = model.segment(scene.image, vocabulary)
        ids, segments = example(Image.fromarray(scene.image))
        assert [(n, name) for n, name, _ in segments] == [(s.id, s.name) for s in expected.segments]
        for (_, _, score), segment in zip(segments, expected.segments, strict=True):
            assert score == pytest.approx(segment.score, abs=1e-3)
        assert (ids != expected.id_map).mean() < 1e-3
        found += len(segments)
    assert found > SCENES, "the scenes have segments to compare"


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 128, 128), (3, 96, 160), (2, 50, 33)])
@torch.inference_mode()
def test_masks_and_scores_of_any_size_are_those_of_pytorch(
    batch: int, height: int, width: int, model: Model, vocabulary: Any, folder: Path
) -> None:
    unit = read_json(folder / "model.json")["multiple"]
    images = 255 * torch.rand(batch, 3, height + -height % unit, width + -width % unit)
    raw = model.segmenter(images)
    scores = vocabulary.score(raw, model.segmenter, model.config.inference)
    values = run_graphs(folder, images)
    close = {"rtol": 0, "atol": 1e-3}
    masks = torch.from_numpy(values["mask_logits"]).sigmoid()
    torch.testing.assert_close(masks, raw.mask_logits.sigmoid(), **close)
    inference = model.config.inference
    present = scores.masks.kept(inference.mask_filter, inference.object_threshold)
    ours = torch.from_numpy(values["presence"]) > inference.object_threshold
    assert (ours == present).float().mean() > 0.99
    for name, expected in (
        ("score", scores.masks.scores),
        ("word_scores", scores.found),
    ):
        torch.testing.assert_close(torch.from_numpy(values[name]), expected, **close)
    assert (values["label"] == scores.masks.labels.numpy()).mean() > 0.99


def test_the_files_tell_nothing_of_the_machine(folder: Path) -> None:
    for path in folder.iterdir():
        assert str(REPOSITORY).encode() not in path.read_bytes(), path.name


@pytest.mark.full_size
@torch.inference_mode()
def test_the_model_of_the_paper_s_size_exports(tmp_path: Path) -> None:
    """SAM ViT-B, CLIP ConvNeXt-L and the paper's head with drawn weights (about 8 GiB)."""
    model = random_model("b", shipped_project("paper"))
    model.segmenter.features.dtype = torch.float32
    vocabulary = model.vocabulary(["cat", ["dog", "puppy"], "grass"], stuff=["grass"])
    export_onnx(model, tmp_path / "exported", vocabulary=vocabulary)
    images = 255 * torch.rand(1, 3, 64, 96)
    raw = model.segmenter(images)
    values = run_graphs(tmp_path / "exported", images)
    masks = torch.from_numpy(values["mask_logits"]).sigmoid()
    torch.testing.assert_close(masks, raw.mask_logits.sigmoid(), rtol=0, atol=1e-3)
    expected = vocabulary.score(raw, model.segmenter, model.config.inference).found
    torch.testing.assert_close(torch.from_numpy(values["word_scores"]), expected, rtol=0, atol=1e-3)
