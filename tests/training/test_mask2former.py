"""Checkpoints of transformers' Mask2Former become the weights of PosSAM's decoders."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, WrongVariantError
from possam.training.mask2former import (
    convert_mask2former,
    describe_decoders,
    start_from_mask2former,
)
from tests.support.lazy import LazyModule
from tests.support.mask2former_reference import Sizes, config_of, our_decoders, randomise, reference
from tests.support.model_fakes import TWO_WAY, small_possam

transformers = LazyModule("transformers")

SIZES = Sizes(widths=(8, 16, 32, 64))
"""``widths``: those of the Swin backbone below."""
PROJECTIONS = tuple(f"pixel_decoder.input_projections.{index}" for index in range(3))


@cache
def checkpoint(**changes: Any) -> Any:
    """A whole Mask2Former with a small Swin backbone and random weights."""
    backbone = transformers.SwinConfig(
        image_size=32,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    sizes = Sizes(**{**vars(SIZES), **changes})
    model = reference.Mask2FormerForUniversalSegmentation(
        config_of(sizes, backbone_config=backbone)
    )
    randomise(model, seed=1, scale=0.1)
    return model.eval()


def state_of(model: nn.Module | None = None) -> dict[str, Tensor]:
    return dict((model or checkpoint()).state_dict())


def possam(**changes: Any) -> PosSAM:
    sizes = {
        "hidden_dim": 64,
        "queries": 9,
        "heads": 4,
        "pixel_encoder_layers": 2,
        "pixel_encoder_ffn": 96,
        "deformable_points": 4,
        "decoder_layers": 4,
        "decoder_ffn": 80,
    }
    return small_possam(**{**sizes, **changes})


@torch.no_grad()
def test_the_decoders_predict_what_the_checkpoint_predicts() -> None:
    theirs, ours = checkpoint(), our_decoders(SIZES)
    weights = convert_mask2former(state_of(), target=ours.state_dict())
    ours.load_state_dict(weights.tensors)
    assert weights.fresh == ()  # here the decoder reads the very backbone
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    maps = theirs.model.pixel_level_module.encoder(image).feature_maps
    features, levels, shapes = ours["pixel_decoder"](maps)
    _, embeddings = ours["mask_decoder"](levels, features, shapes=shapes)
    masks = torch.einsum("bqc,bchw->bqhw", embeddings[:, -1], features)
    torch.testing.assert_close(masks, theirs(image).masks_queries_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inner", [False, True])
def test_both_classes_of_checkpoint_give_the_same(inner: bool) -> None:
    state = state_of(checkpoint().model if inner else None)
    assert inner != any(key.startswith("model.") for key in state)
    found = convert_mask2former(state, target=possam().decoder.state_dict())
    expected = convert_mask2former(state_of(), target=possam().decoder.state_dict())
    assert found.fresh == expected.fresh and set(found.tensors) == set(expected.tensors)
    for name, value in expected.tensors.items():
        assert torch.equal(found.tensors[name], value)


def save_torch(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "pytorch_model.bin"
    torch.save(state, path)
    return path


def save_safe(state: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "model.safetensors"
    save_file(state, path)
    return path


@pytest.mark.parametrize("save", [save_torch, save_safe])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_is_put_into_possam(
    save: Callable[[dict[str, Tensor], Path], Path],
    dtype: torch.dtype,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save({key: value.to(dtype) for key, value in state_of().items()}, tmp_path)
    model, before = possam(), possam().decoder.state_dict()
    weights = start_from_mask2former(model, path)
    # Swin's maps are 8 and 32 channels wide, PosSAM's 64; the coarsest has 64 by chance.
    assert weights.fresh == (*PROJECTIONS[1:], "pixel_decoder.lateral")
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1 and str(path) in printed
    assert all(block in printed for block in weights.fresh) and PROJECTIONS[0] not in printed
    assert {value.dtype for value in weights.tensors.values()} == {torch.float32}
    theirs = state_of()
    fused = theirs["model.transformer_module.decoder.layers.3.cross_attn.in_proj_weight"]
    attention = model.decoder.mask_decoder.layers[3].cross_attention
    for linear, part in zip(
        (attention.q_proj, attention.k_proj, attention.v_proj), fused.split(64), strict=True
    ):
        assert torch.equal(linear.weight, part.to(dtype).float())
    for name, value in model.decoder.state_dict().items():
        assert value.dtype == torch.float32
        copied = name.startswith(("pixel_decoder.", "mask_decoder.")) and not name.startswith(
            weights.fresh
        )
        assert (name in weights.tensors) == copied
        assert torch.equal(value, weights.tensors[name] if copied else before[name])


def test_queries_and_their_positions_are_not_confused() -> None:
    tensors = convert_mask2former(state_of(), target=possam().decoder.state_dict()).tensors
    theirs = state_of()
    assert torch.equal(
        tensors["mask_decoder.query_features"],
        theirs["model.transformer_module.queries_features.weight"],
    )
    assert torch.equal(
        tensors["mask_decoder.query_positions"],
        theirs["model.transformer_module.queries_embedder.weight"],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queries": 12}, r"queries 9 \(here 12\)"),
        ({"hidden_dim": 32}, r"hidden_dim 64 \(here 32\).*mask_channels 64 \(here 32\)"),
        ({"pixel_encoder_layers": 1}, r"pixel_encoder_layers 2 \(here 1\)"),
        ({"pixel_encoder_ffn": 100}, r"pixel_encoder_ffn 96 \(here 100\)"),
        ({"decoder_layers": 9}, r"decoder_layers 4 \(here 9\)"),
        ({"decoder_ffn": 81}, r"decoder_ffn 80 \(here 81\)"),
        ({"heads": 8}, r"heads_x_deformable_points 16 \(here 32\)"),
        ({"deformable_points": 3}, r"heads_x_deformable_points 16 \(here 12\)"),
        ({"pixel_encoder_layers": 0}, r"pixel_encoder_layers 2 \(here 0\)"),
    ],
)
def test_other_sizes_are_refused_with_both_named(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = possam(**changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    path = save_torch(state_of(), tmp_path)
    with pytest.raises(WrongVariantError, match=message) as error:
        start_from_mask2former(model, path)
    assert str(path) in str(error.value) and "run's model" in str(error.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_sizes_are_read_off_the_shapes() -> None:
    assert describe_decoders(possam(queries=12, heads=8).decoder.state_dict()).queries == 12
    without = possam(pixel_encoder_layers=0).decoder.state_dict()
    assert describe_decoders(without).pixel_encoder_ffn == 0


@pytest.mark.parametrize(
    "extra",
    [
        "model.transformer_module.input_projections.0.weight",
        "model.pixel_level_module.decoder.adapter_2.0.weight",
        "model.pixel_level_module.decoder.encoder.layers.0.fc3.weight",
        "model.transformer_module.decoder.mask_predictor.mask_embedder.3.0.weight",
        "transformer_module.queries_features.weight",
        "text_encoder.weight",
    ],
)
def test_unknown_tensors_are_refused_by_name(extra: str) -> None:
    with pytest.raises(WrongVariantError, match="no counterpart, first " + extra):
        convert_mask2former(
            {**state_of(), extra: torch.zeros(2, 2)}, target=possam().decoder.state_dict()
        )


def test_missing_and_damaged_tensors_are_refused() -> None:
    target = possam().decoder.state_dict()
    queries = "model.transformer_module.queries_features.weight"
    bias = "model.transformer_module.decoder.layernorm.bias"
    state = state_of()
    with pytest.raises(InputError, match=r"not a Mask2Former.*query_features"):
        convert_mask2former({k: v for k, v in state.items() if k != queries}, target=target)
    with pytest.raises(InputError, match=r"lacks what becomes mask_decoder\.norm\.bias"):
        convert_mask2former({k: v for k, v in state.items() if k != bias}, target=target)
    with pytest.raises(InputError, match=r"norm.bias would be \(3,\), expected \(64,\)"):
        convert_mask2former({**state, bias: torch.zeros(3)}, target=target)
    odd = "model.transformer_module.decoder.layers.0.cross_attn.odd"
    with pytest.raises(InputError, match=r"has what would become .*cross_attention\.odd"):
        convert_mask2former({**state, odd: torch.zeros(3)}, target=target)


def test_a_projection_is_copied_as_a_whole_or_not_at_all() -> None:
    """The norm behind a convolution belongs to it."""
    weights = convert_mask2former(state_of(), target=possam().decoder.state_dict())
    for block in weights.fresh:
        assert not any(name.startswith(f"{block}.") for name in weights.tensors)
    for part in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert f"{PROJECTIONS[0]}.{part}" in weights.tensors


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_unreadable_files_are_refused(name: str, tmp_path: Path) -> None:
    save = save_safe if name.endswith("safetensors") else save_torch
    path = save(state_of(), tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=rf"{name}: not a readable .* truncated"):
        start_from_mask2former(possam(), path)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name}: no such file; a Mask2Former checkpoint"):
        start_from_mask2former(possam(), path)


def test_what_is_not_a_state_dict_is_refused_and_no_code_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save([torch.zeros(2)], path)
    with pytest.raises(InputError, match="a Mask2Former state dict is expected"):
        start_from_mask2former(possam(), path)
    torch.save(nn.Linear(2, 2), path)  # a whole module: unpickling it would run code
    with pytest.raises(InputError, match="not a readable"):
        start_from_mask2former(possam(), path)
    torch.save({"image_encoder.pos_embed": torch.zeros(2)}, path)
    with pytest.raises(WrongVariantError, match=r"bin: not a Mask2Former.*image_encoder"):
        start_from_mask2former(possam(), path)


def test_a_decoder_of_another_kind_is_refused(tmp_path: Path) -> None:
    model = small_possam(**TWO_WAY)
    with pytest.raises(InputError, match=r"has no parts of Mask2Former; use decoder: mask2former"):
        start_from_mask2former(model, save_torch(state_of(), tmp_path))
