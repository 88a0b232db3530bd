"""SAM: the encoder against segment_anything's own, and checkpoints that are refused."""

import math
from functools import partial
from pathlib import Path

import pytest
import segment_anything
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

from possam.model.encoders.sam import (
    ARCHITECTURES,
    PIXEL_MEAN,
    PIXEL_STD,
    SamArchitecture,
    SamEncoder,
    build_sam,
    describe_state_dict,
    load_sam,
)
from possam.model.ops import sam_encoder
from possam.model.ops.sam_encoder import run_encoder
from possam.runtime.errors import InputError, WrongVariantError
from tests.support.parity_report import Parity

TINY = SamArchitecture(
    name="tiny", embed_dim=32, depth=3, num_heads=4, global_attention=(1,), patch_size=8,
    window_size=3, image_size=64, out_channels=16, decoder_heads=2, decoder_mlp_dim=32,
    iou_hidden_dim=16,
)  # fmt: skip
LIKE_VIT_B = SamArchitecture(
    name="like_vit_b", embed_dim=768, depth=2, num_heads=12, global_attention=(1,), image_size=256
)


def _sam(architecture: SamArchitecture) -> Sam:
    """Random weights, position tables of a size that matters."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = build_sam(architecture)
        for name, parameter in sam.image_encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.5)
    return sam


def _images(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 255


def _reference(sam: Sam, images: Tensor) -> Tensor:
    """segment_anything's forward; for other grids the position embedding is resized before."""
    encoder = sam.image_encoder
    mean, std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    normalised = (images - mean[:, None, None]) / std[:, None, None]
    patch = encoder.patch_embed.proj.stride[0]
    height, width = (math.ceil(s / patch) for s in images.shape[-2:])
    padded = torch.zeros(len(images), 3, height * patch, width * patch)
    padded[..., : images.shape[-2], : images.shape[-1]] = normalised
    pretrained = encoder.pos_embed
    position = pretrained.detach().permute(0, 3, 1, 2)
    if position.shape[-2:] != (height, width):
        position = F.interpolate(position, (height, width), mode="bicubic", align_corners=False)
    encoder.pos_embed = nn.Parameter(position.permute(0, 2, 3, 1))
    with torch.no_grad():
        out = encoder(padded)
    encoder.pos_embed = pretrained
    return out


BOUND = 1e-4


@pytest.mark.parity("sam_encoder")
@pytest.mark.parametrize("architecture", [TINY, LIKE_VIT_B, ARCHITECTURES["synthetic_b"]])
def test_encoder_equals_segment_anything_at_its_own_size(
    architecture: SamArchitecture, parity: Parity
) -> None:
    sam = _sam(architecture)
    images = _images(2, 3, architecture.image_size, architecture.image_size)
    encoder = SamEncoder(sam.image_encoder)
    found = encoder(images)
    side = architecture.image_size // architecture.patch_size
    assert found.shape == (2, encoder.channels, side, side)
    assert encoder.stride == architecture.patch_size
    assert encoder.channels == architecture.out_channels
    with torch.no_grad():
        plain = sam.image_encoder(torch.stack([sam.preprocess(image) for image in images]))
    parity.close(found, plain, bound=BOUND)


@pytest.mark.parity("sam_encoder")
@pytest.mark.parametrize("size", [(64, 40), (24, 96), (61, 90), (128, 128), (8, 8), (57, 64)])
def test_encoder_takes_any_size(size: tuple[int, int], parity: Parity) -> None:
    sam = _sam(TINY)
    images = _images(2, 3, *size)
    found = SamEncoder(sam.image_encoder)(images)
    assert found.shape == (2, 16, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    parity.close(found, _reference(sam, images), bound=BOUND)


@pytest.mark.parity("sam_encoder")
@pytest.mark.parametrize("rows", [5, 64])
@pytest.mark.parametrize("size", [(64, 64), (61, 90)])
def test_attention_in_rows_and_in_few_windows_equals_segment_anything(
    size: tuple[int, int], rows: int, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for large images: some rows of scores of global blocks, some windows, at a time."""
    monkeypatch.setattr(sam_encoder, "_MANY_TOKENS", 10)
    monkeypatch.setattr(sam_encoder, "_ROWS", rows)
    monkeypatch.setattr(sam_encoder, "_MASK_CELLS", 700)
    sam = _sam(TINY)
    images = _images(2, 3, *size)
    parity.close(SamEncoder(sam.image_encoder)(images), _reference(sam, images), bound=BOUND)


@pytest.mark.parametrize("rows", [False, True])
def test_bfloat16_is_close_to_float32(rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_encoder, "_MANY_TOKENS", 10 if rows else 1 << 20)
    sam = _sam(TINY)
    images = _images(1, 3, 64, 64) / 255
    with torch.no_grad():
        exact = run_encoder(sam.image_encoder, images)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = run_encoder(sam.image_encoder, images)
        half = run_encoder(sam.image_encoder.bfloat16(), images.bfloat16())
    assert half.dtype == torch.bfloat16
    for found in (mixed, half):
        assert (found.float() - exact).abs().max() / exact.abs().max() < 0.03


def test_encoder_has_gradients_where_its_weights_have() -> None:
    """The mini world trains a SAM; attention that is not fused has none."""
    sam = _sam(TINY)
    images = _images(1, 3, 64, 64)
    gradients = []
    for encode in (sam.image_encoder, partial(run_encoder, sam.image_encoder)):
        sam.zero_grad()
        encode(images).square().sum().backward()
        gradients.append(sam.image_encoder.blocks[1].attn.qkv.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-3)


@pytest.mark.full_size
@pytest.mark.parity("sam_encoder")
@pytest.mark.parametrize(
    ("variant", "odd_size"),
    [("vit_h", (300, 437)), ("vit_l", (427, 640)), ("vit_b", (683, 1000))],
)
def test_full_size_encoder_equals_segment_anything(
    variant: str, odd_size: tuple[int, int], tmp_path: Path, parity: Parity
) -> None:
    """Weights of the official layout, read by our loader and by segment_anything's."""
    path = tmp_path / f"{variant}.pth"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = segment_anything.sam_model_registry[variant]()
        for name, parameter in sam.image_encoder.named_parameters():
            if "rel_pos" in name or "pos_embed" in name:
                nn.init.normal_(parameter, std=0.5)
    torch.save(sam.state_dict(), path)
    del sam
    # One network at a time: two copies of ViT-H and its attention maps are 10 GB.
    encoder = SamEncoder(load_sam(path, architecture=variant).image_encoder)
    images = [_images(1, 3, *size) for size in ((1024, 1024), odd_size)]
    found = [encoder(image) for image in images]
    del encoder
    sam = segment_anything.sam_model_registry[variant](checkpoint=path)
    path.unlink()
    with torch.no_grad():
        plain = sam.image_encoder(sam.preprocess(images[0][0])[None])
    parity.close(found[0], plain, bound=BOUND)
    parity.close(found[1], _reference(sam, images[1]), bound=BOUND)


def test_relative_positions_matter_to_the_parity() -> None:
    """Without the tables the result differs: the parity above is not that of zeros."""
    sam = _sam(TINY)
    images = _images(1, 3, 64, 64)
    with_tables = SamEncoder(sam.image_encoder)(images)
    for block in sam.image_encoder.blocks:
        nn.init.zeros_(block.attn.rel_pos_h)
    assert (SamEncoder(sam.image_encoder)(images) - with_tables).abs().max() > 0.01


def test_a_batch_equals_its_images() -> None:
    encoder = SamEncoder(_sam(TINY).image_encoder)
    images = _images(3, 3, 50, 70)
    together = encoder(images)
    for k in range(3):
        torch.testing.assert_close(encoder(images[k : k + 1])[0], together[k])


def test_encoder_is_frozen_and_shares_the_weights() -> None:
    sam = _sam(TINY)
    encoder = SamEncoder(sam.image_encoder)
    nn.Sequential(encoder).train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder(_images(1, 3, 64, 64).requires_grad_()).requires_grad
    assert encoder.encoder is sam.image_encoder
    keys = {f"encoder.{key}" for key in sam.image_encoder.state_dict()}
    assert set(encoder.state_dict()) == keys


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_architectures_are_segment_anythings(name: str) -> None:
    with torch.device("meta"):
        ours = build_sam(ARCHITECTURES[name])
        theirs = segment_anything.sam_model_registry[name]()
    found, expected = ours.state_dict(), theirs.state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
    for mine, other in zip(ours.image_encoder.blocks, theirs.image_encoder.blocks, strict=True):
        assert mine.window_size == other.window_size
        assert mine.attn.num_heads == other.attn.num_heads
    assert torch.Size((3, 1, 1)) == ours.pixel_mean.shape
    parameters = sum(p.numel() for p in ours.image_encoder.parameters())
    published = {"vit_b": 89_670_912, "vit_l": 308_278_272, "vit_h": 637_026_048}
    assert parameters == published[name]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_variant_is_read_off_the_shapes(name: str) -> None:
    with torch.device("meta"):
        state = build_sam(ARCHITECTURES[name]).state_dict()
    assert describe_state_dict(state) == ARCHITECTURES[name]


def test_an_unknown_variant_is_described() -> None:
    found = describe_state_dict(build_sam(TINY).state_dict())
    assert found.name == "unknown"
    assert (found.embed_dim, found.depth, found.num_heads) == (32, 3, 4)
    assert (found.window_size, found.global_attention, found.image_size) == (3, (1,), 64)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sam") / "b.pth"
    torch.save(_sam(ARCHITECTURES["synthetic_b"]).state_dict(), path)
    return path


def test_load_gives_the_saved_weights_in_fp32(checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(checkpoint, weights_only=True)
    half = tmp_path / "half.pth"
    torch.save({k: v.half() for k, v in state.items()}, half)
    for path, tolerance in ((checkpoint, 0.0), (half, 2e-3)):
        loaded = load_sam(path, architecture="synthetic_b").state_dict()
        for key, value in state.items():
            assert loaded[key].dtype == torch.float32
            torch.testing.assert_close(loaded[key], value, rtol=tolerance, atol=tolerance)


def test_another_variant_is_refused_by_name(checkpoint: Path) -> None:
    with pytest.raises(WrongVariantError, match=r"b\.pth.*SAM synthetic_b .*synthetic_h"):
        load_sam(checkpoint, architecture="synthetic_h")
    with pytest.raises(InputError, match="'vit_x': unknown; choose one of vit_b, vit_l, vit_h"):
        load_sam(checkpoint, architecture="vit_x")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoints_are_refused(checkpoint: Path, tmp_path: Path, share: float) -> None:
    content = checkpoint.read_bytes()
    path = tmp_path / "cut.pth"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.pth: .*truncated"):
        load_sam(path, architecture="synthetic_b")


def test_foreign_files_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_sam(tmp_path / "none.pth", architecture="synthetic_b")
    text = tmp_path / "text.pth"
    text.write_text("<html>not found</html>")
    with pytest.raises(InputError, match="not a readable PyTorch checkpoint"):
        load_sam(text, architecture="synthetic_b")
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(InputError, match=r"other\.pth: not a SAM state dict"):
        load_sam(other, architecture="synthetic_b")
    torch.save([1, 2], other)
    with pytest.raises(InputError, match="a SAM state dict is expected"):
        load_sam(other, architecture="synthetic_b")
    state = torch.load(checkpoint, weights_only=True)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, other)
    with pytest.raises(InputError, match="damaged"):
        load_sam(other, architecture="synthetic_b")
