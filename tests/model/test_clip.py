"""CLIP: the frozen towers against open_clip, and configurations and files that are refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from possam.model.encoders.clip import (
    FrozenClip,
    build_open_clip,
    load_clip,
    register_synthetic_towers,
)
from possam.model.encoders.text import embed_vocabulary
from possam.model.pooling import mask_pool
from possam.params.project import Project
from possam.runtime.errors import InputError, WrongVariantError
from tests.support.parity_report import Parity

TOWERS = Path(__file__).resolve().parents[2] / "data" / "towers"
CONFIG, WEIGHTS = TOWERS / "synthetic_clip.json", TOWERS / "synthetic_clip.safetensors"
PARAMS = TOWERS.parents[1] / "params"
PAPER_CLIP = "convnext_large_d_320"
TEXTS = ["a photo of a red disc.", "grass", "a zebra in the scene", "There is a blue ring"]


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return load_clip(config=CONFIG, checkpoint=WEIGHTS)


def _images(clip: FrozenClip, count: int = 3) -> torch.Tensor:
    shape = (count, 3, clip.image_size, clip.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255


def _whole_image(clip: FrozenClip, images: torch.Tensor) -> torch.Tensor:
    """Pooling with a mask of ones, then CLIP's own head."""
    mask = torch.ones(len(images), 1, *images.shape[-2:])
    return clip.project(mask_pool(clip.encode_dense(images), mask)[:, 0])


def _averaged(
    model: open_clip.CLIP, tokenizer: Any, names: list[str], templates: tuple[str, ...]
) -> torch.Tensor:
    """FC-CLIP's class embeddings, name by name: normalise, average, normalise."""
    rows = []
    for name in names:
        each = [model.encode_text(tokenizer([t.format(name)]))[0] for t in templates]
        mean = torch.stack([embedding / embedding.norm() for embedding in each]).mean(0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def _write(path: Path, changes: dict[str, Any], section: str | None = None) -> Path:
    options = json.loads(CONFIG.read_text())
    (options[section] if section else options).update(changes)
    path.write_text(json.dumps(options))
    shutil.copy(TOWERS / "synthetic_clip_bpe.txt.gz", path.parent)
    return path


@pytest.mark.parity("clip_image")
def test_plain_open_clip_builds_the_shipped_tower_and_agrees(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch, parity: Parity
) -> None:
    # The BPE path is relative to the configuration; plain open_clip reads it from where it runs.
    monkeypatch.chdir(TOWERS)
    register_synthetic_towers()
    register_synthetic_towers()
    open_clip.add_model_config(CONFIG)
    plain = open_clip.create_model("synthetic_clip", pretrained=str(WEIGHTS)).eval()
    tokenizer = open_clip.get_tokenizer("synthetic_clip")
    images = _images(clip)
    normalised = (images - clip.image_mean) / clip.image_std
    with torch.no_grad():
        parity.close(_whole_image(clip, images), plain.encode_image(normalised), bound=1e-4)
        expected = F.normalize(plain.encode_text(tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_text(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert clip.logit_scale == pytest.approx(plain.logit_scale.exp().item(), rel=1e-3)


@pytest.mark.parity("clip_text")
def test_vocabulary_is_the_average_over_templates(clip: FrozenClip, parity: Parity) -> None:
    templates = ("a photo of a {}", "a {}", "this is a {}")
    names = ["red disc", "grass", "blue ring"]
    text = embed_vocabulary(clip, [(name,) for name in names], templates=templates)
    with torch.no_grad():
        expected = _averaged(clip.model, clip.tokenizer, names, templates)
    parity.close(text.names, expected, bound=1e-4)


def _random_convnext_large(path: Path) -> None:
    """Random weights in the official layout, with blocks and norms that do something.

    timm starts layer scale at 1e-6 and norms as identities: their place would not matter.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.create_model(PAPER_CLIP)
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                torch.nn.init.uniform_(parameter, 0.1, 0.5)
            elif ".norm." in name or "ln_final" in name:
                torch.nn.init.normal_(parameter, mean=float("weight" in name), std=0.3)
    torch.save(model.state_dict(), path)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FrozenClip, Any]]:
    """The paper's CLIP, read by our loader and by open_clip's."""
    path = tmp_path_factory.mktemp("clip") / "open_clip_pytorch_model.bin"
    _random_convnext_large(path)
    ours = load_clip(config=PAPER_CLIP, checkpoint=path)
    theirs = open_clip.create_model(PAPER_CLIP, pretrained=str(path)).eval()
    path.unlink()
    yield ours, theirs


@pytest.mark.full_size
@pytest.mark.parity("clip_image")
def test_full_size_image_tower_equals_encode_image(
    large: tuple[FrozenClip, Any], parity: Parity
) -> None:
    ours, theirs = large
    ours.train()
    images = _images(ours, 2)
    assert images.shape[-2:] == (320, 320)
    preprocess = open_clip.get_pretrained_cfg(PAPER_CLIP, "laion2b_s29b_b131k_ft_soup")
    mean, std = (torch.tensor(preprocess[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        expected = theirs.encode_image((images / 255 - mean) / std)
        dense = theirs.visual.trunk.forward_features((images / 255 - mean) / std)
    parity.close(ours.encode_dense(images), dense, bound=1e-4)
    parity.close(_whole_image(ours, images), expected, bound=1e-4)


@pytest.mark.full_size
@pytest.mark.parity("clip_text")
def test_full_size_text_tower_equals_encode_text(
    large: tuple[FrozenClip, Any], parity: Parity
) -> None:
    ours, theirs = large
    templates = Project("paper", folder=PARAMS).scale.templates
    assert len(templates) == 14
    tokenizer = open_clip.get_tokenizer(PAPER_CLIP)
    names = ["traffic light", "wall-other-merged"]
    text = embed_vocabulary(ours, [(name,) for name in names], templates=templates)
    with torch.no_grad():
        sentences = [template.format(name) for name in names for template in templates]
        plain = F.normalize(theirs.encode_text(tokenizer(sentences)), dim=-1)
        expected = _averaged(theirs, tokenizer, names, templates)
    parity.close(ours.encode_text(sentences), plain, bound=1e-4)
    parity.close(text.names, expected, bound=1e-4)


def test_pixel_statistics_are_openais(clip: FrozenClip) -> None:
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN) * 255
    torch.testing.assert_close(clip.image_mean.flatten(), mean)
    std = torch.tensor(open_clip.OPENAI_DATASET_STD) * 255
    torch.testing.assert_close(clip.image_std.flatten(), std)


@pytest.mark.parametrize(("projection", "pool"), [("mlp", ""), ("linear", "avg"), ("", "avg")])
def test_project_follows_each_kind_of_head(tmp_path: Path, projection: str, pool: str) -> None:
    """``mlp`` with an empty pool is the layout of convnext_large_d_320."""
    changes = {
        "timm_model_name": "convnext_atto", "timm_proj": projection, "timm_pool": pool,
        "image_size": 96,
    }  # fmt: skip
    path = _write(tmp_path / "atto.json", changes, "vision_cfg")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = load_clip(config=path, checkpoint=None, random_init=True)
    # Random norms are identities; change them, so that their place matters.
    norm = clip.model.visual.trunk.head.norm
    torch.nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(2))
    torch.nn.init.normal_(norm.bias, generator=torch.Generator().manual_seed(3))
    images = _images(clip)
    with torch.no_grad():
        expected = clip.model.encode_image((images - clip.image_mean) / clip.image_std)
    dense = clip.encode_dense(images)
    assert dense.shape == (3, clip.dense_channels, 3, 3) and clip.stride == 32
    assert expected.shape[1] == clip.embed_dim == 128
    torch.testing.assert_close(_whole_image(clip, images), expected, rtol=1e-4, atol=1e-5)


def test_project_keeps_leading_axes_and_passes_gradients(clip: FrozenClip) -> None:
    pooled = torch.randn(2, 5, clip.dense_channels, requires_grad=True)
    out = clip.project(pooled)
    assert out.shape == (2, 5, clip.embed_dim)
    torch.testing.assert_close(out[1, 3], clip.project(pooled[1, 3]))
    out.sum().backward()
    assert pooled.grad is not None and pooled.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [(128, 128), (96, 160), (100, 70)])
def test_dense_features_of_any_size(clip: FrozenClip, size: tuple[int, int]) -> None:
    dense = clip.encode_dense(torch.rand(1, 3, *size) * 255)
    assert dense.shape[:2] == (1, clip.dense_channels)
    for cells, pixels in zip(dense.shape[2:], size, strict=True):
        assert abs(cells - pixels / clip.stride) <= 1


@pytest.mark.parametrize("name", ["synthetic", "convnext_atto"])
def test_stages_are_timm_s(clip: FrozenClip, tmp_path: Path, name: str) -> None:
    if name != "synthetic":
        changes = {"timm_model_name": name, "timm_pool": "avg", "image_size": 96}
        path = _write(tmp_path / "atto.json", changes, "vision_cfg")
        clip = load_clip(config=path, checkpoint=None, random_init=True)
    images = torch.rand(2, 3, 96, 128) * 255
    stages = clip.encode_stages(images)
    trunk = clip.model.visual.trunk
    with torch.no_grad():
        normalised = (images - clip.image_mean) / clip.image_std
        expected = trunk.forward_intermediates(normalised, intermediates_only=True)
        torch.testing.assert_close(stages[-1], trunk.forward_features(normalised))
    assert torch.equal(clip.encode_dense(images), stages[-1])
    assert len(stages) == len(expected) == 4
    for stage, other, channels, stride in zip(
        stages, expected, clip.stage_channels, clip.stage_strides, strict=True
    ):
        torch.testing.assert_close(stage, other)
        assert stage.shape == (2, channels, 96 // stride, 128 // stride)
        assert not stage.requires_grad
    assert clip.stage_strides == ((4, 8, 16, 16) if name == "synthetic" else (4, 8, 16, 32))


def test_clip_stays_frozen(clip: FrozenClip) -> None:
    torch.nn.Sequential(clip).train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_stochastic_depth_and_batch_norm_never_act(tmp_path: Path) -> None:
    """The paper's CLIP is configured with stochastic depth, which training mode would draw."""
    changes = {"timm_drop_path": 0.9, "timm_drop": 0.9}
    path = _write(tmp_path / "drop.json", changes, "vision_cfg")
    clip = load_clip(config=path, checkpoint=WEIGHTS)
    clip.model.visual.trunk.extra = torch.nn.BatchNorm2d(3)
    torch.nn.Sequential(clip).train()
    images = _images(clip, 2)
    kinds = {type(m).__name__ for m in clip.modules()}
    assert {"DropPath", "LayerNorm", "BatchNorm2d"} <= kinds, kinds
    torch.testing.assert_close(clip.encode_dense(images), clip.encode_dense(images), rtol=0, atol=0)
    assert not any(module.training for module in clip.modules())


def test_texts_are_normalised_and_batched(clip: FrozenClip) -> None:
    many = clip.encode_text([f"{TEXTS[k % 4]} {k // 4}" for k in range(300)])
    assert many.shape == (300, clip.embed_dim)
    torch.testing.assert_close(many.norm(dim=-1), torch.ones(300))
    torch.testing.assert_close(many[257:258], clip.encode_text([f"{TEXTS[1]} 64"]))
    with pytest.raises(InputError, match="no texts"):
        clip.encode_text([])


def test_the_papers_clip_has_the_published_size() -> None:
    with torch.device("meta"):
        model, _, size = build_open_clip("convnext_large_d_320")
    assert size == 320
    assert sum(p.numel() for p in model.parameters()) == 351_772_609


def test_random_weights_only_when_asked_for() -> None:
    for checkpoint, random_init in ((None, False), (WEIGHTS, True)):
        with pytest.raises(InputError, match="random_init=True"):
            load_clip(config=CONFIG, checkpoint=checkpoint, random_init=random_init)


def test_bin_and_pt_checkpoints_load_too(clip: FrozenClip, tmp_path: Path) -> None:
    state = clip.model.state_dict()
    torch.save(state, tmp_path / "clip.bin")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "clip.pt")
    for name in ("clip.bin", "clip.pt"):
        loaded = load_clip(config=CONFIG, checkpoint=tmp_path / name).model.state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.bin"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_checkpoints_are_refused(
    clip: FrozenClip, tmp_path: Path, name: str, share: float
) -> None:
    whole = tmp_path / f"whole-{name}"
    if name.endswith(".bin"):
        torch.save(clip.model.state_dict(), whole)
    else:
        shutil.copy(WEIGHTS, whole)
    content = whole.read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=rf"{name}: .*truncated"):
        load_clip(config=CONFIG, checkpoint=tmp_path / name)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    state = load_file(WEIGHTS)
    path = tmp_path / "other.safetensors"
    save_file({**state, "visual.more": torch.zeros(1)}, path)
    with pytest.raises(WrongVariantError, match=r"unknown 1 tensors.*visual\.more"):
        load_clip(config=CONFIG, checkpoint=path)
    save_file({k: v for k, v in state.items() if k != "ln_final.bias"}, path)
    with pytest.raises(WrongVariantError, match=r"lacks 1 tensors.*ln_final\.bias"):
        load_clip(config=CONFIG, checkpoint=path)
    save_file(state | {"ln_final.bias": torch.zeros(7)}, path)
    with pytest.raises(WrongVariantError, match=r"ln_final\.bias is \(7,\), expected \(128,\)"):
        load_clip(config=CONFIG, checkpoint=path)
    with pytest.raises(InputError, match="no such file"):
        load_clip(config=CONFIG, checkpoint=tmp_path / "none.safetensors")


def test_configurations_that_cannot_work_are_refused(tmp_path: Path) -> None:
    def refused(config: Path | str, match: str) -> None:
        with pytest.raises(InputError, match=match):
            load_clip(config=config, checkpoint=None, random_init=True)

    refused("convnext_of_nobody", "built-in open_clip model")
    refused("hf-hub:someone/model", "built-in open_clip model")
    refused(tmp_path / "none.json", "no such file")
    (tmp_path / "cut.json").write_text(CONFIG.read_text()[:100])
    refused(tmp_path / "cut.json", "not valid JSON")
    (tmp_path / "empty.json").write_text("{}")
    refused(tmp_path / "empty.json", "no embed_dim, vision_cfg, text_cfg")
    path = tmp_path / "config.json"
    refused(_write(path, {"timm_model_name": "convnext_unheard"}, "vision_cfg"), "cannot build")
    refused(_write(path, {"hf_tokenizer_name": "someone/bert"}, "text_cfg"), "from a hub")
    refused(_write(path, {"unknown_key": 1}, "text_cfg"), "cannot build")
    missing = {"tokenizer_kwargs": {"bpe_path": "missing.gz"}}
    refused(_write(path, missing, "text_cfg"), "bpe_path")
    vit = {"timm_model_name": None, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    refused(_write(path, vit, "vision_cfg"), "a timm ConvNeXt is needed")
