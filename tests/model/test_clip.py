"""CLIP: the frozen towers against open_clip, and configurations and files that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from possam.errors import InputError, WrongVariantError
from possam.model.clip import (
    FrozenClip,
    build_open_clip,
    load_clip,
    register_synthetic_towers,
)

TOWERS = Path(__file__).resolve().parents[2] / "data" / "towers"
CONFIG, WEIGHTS = TOWERS / "synthetic_clip.json", TOWERS / "synthetic_clip.safetensors"
TEXTS = ["a photo of a red disc.", "grass", "a zebra in the scene", "There is a blue ring"]


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return load_clip(config=CONFIG, checkpoint=WEIGHTS)


def _images(clip: FrozenClip, count: int = 3) -> torch.Tensor:
    shape = (count, 3, clip.image_size, clip.image_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 255


def _whole_image(clip: FrozenClip, images: torch.Tensor) -> torch.Tensor:
    """Mean pooling with a mask of ones, then CLIP's own head."""
    return clip.project(clip.encode_dense(images).mean((2, 3)))


def _write(path: Path, changes: dict[str, Any], section: str | None = None) -> Path:
    options = json.loads(CONFIG.read_text())
    (options[section] if section else options).update(changes)
    path.write_text(json.dumps(options))
    shutil.copy(TOWERS / "synthetic_clip_bpe.txt.gz", path.parent)
    return path


def test_plain_open_clip_builds_the_shipped_tower_and_agrees(
    clip: FrozenClip, monkeypatch: pytest.MonkeyPatch
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
        torch.testing.assert_close(
            _whole_image(clip, images), plain.encode_image(normalised), rtol=1e-4, atol=1e-4
        )
        expected = F.normalize(plain.encode_text(tokenizer(TEXTS)), dim=-1)
    torch.testing.assert_close(clip.encode_text(TEXTS), expected, rtol=1e-4, atol=1e-5)
    assert clip.logit_scale == pytest.approx(plain.logit_scale.exp().item(), rel=1e-3)


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
    assert clip.stage_strides == ((4, 8, 8, 8) if name == "synthetic" else (4, 8, 16, 32))


def test_clip_stays_frozen(clip: FrozenClip) -> None:
    clip.train()
    assert not any(module.training for module in clip.modules())
    assert not any(parameter.requires_grad for parameter in clip.parameters())


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
