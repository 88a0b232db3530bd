"""The frozen CLIP: dense image features, CLIP's own head on pooled features, and text embeddings.

Shapes: B images, N texts, C channels of the dense map (Cc), E CLIP embedding, H W.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.factory import load_state_dict
from open_clip.model import (
    CLIP,
    CLIPTextCfg,
    CLIPVisionCfg,
    CustomTextCLIP,
    convert_to_custom_text_state_dict,
)
from open_clip.tokenizer import SimpleTokenizer
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from possam.model.encoders.state_dicts import READ_ERRORS, check_tensors
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.json_text import parse_json
from possam.runtime.reading import check_readable

SYNTHETIC_CONVNEXT = "synthetic_convnext"
_TEXT_BATCH = 256


def synthetic_convnext(pretrained: bool = False, **kwargs: Any) -> ConvNeXt:
    """The image tower of the mini world: a ConvNeXt of 0.7 M parameters with output stride 16.

    ``kwargs`` are timm's. There is no layer scale: timm's initial value of 1e-6 would leave the
    blocks without effect in a short training.
    """
    if pretrained:
        raise InputError(f"{SYNTHETIC_CONVNEXT}: no pretrained weights exist; load a checkpoint")
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)
    model = ConvNeXt(
        dims=(32, 64, 128, 128), depths=(1, 1, 3, 1), kernel_sizes=(7, 7, 3, 3), output_stride=16,
        stem_type="overlap_act", ls_init_value=None, **kwargs,
    )  # fmt: skip
    model.default_cfg = {"pool_size": (4, 4)}  # type: ignore[assignment]
    return model


def register_synthetic_towers() -> None:
    """Make ``synthetic_convnext`` known to timm, unless it is, so that open_clip can build it."""
    if not timm.is_model(SYNTHETIC_CONVNEXT):
        timm.models.register_model(synthetic_convnext)


def _read_config(config: Path | str) -> tuple[dict[str, Any], str, Path | None]:
    """The open_clip model configuration, its name in messages, and the folder of its file."""
    path = Path(config)
    if path.suffix != ".json":
        found = open_clip.get_model_config(str(config)) if ":" not in str(config) else None
        if found is None:
            raise InputError(
                f"{config}: neither an open_clip JSON file nor a built-in open_clip model name"
            )
        return found, str(config), None
    check_readable(path, missing="an open_clip model configuration is expected there")
    try:
        loaded = parse_json(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); the file may be truncated") from error
    loaded = loaded.get("model_cfg", loaded) if isinstance(loaded, dict) else {}
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    known = loaded if isinstance(loaded, dict) else {}
    if missing := [key for key, kind in kinds.items() if type(known.get(key)) is not kind]:
        raise InputError(f"{path}: not an open_clip model configuration: no {', '.join(missing)}")
    return loaded, str(path), path.parent


def _build_tokenizer(text: dict[str, Any], name: str, folder: Path | None) -> SimpleTokenizer:
    if text.get("hf_tokenizer_name") or text.get("hf_model_name"):
        raise InputError(f"{name}: text_cfg needs a tokenizer from a hub; only BPE files are read")
    options = dict(text.get("tokenizer_kwargs") or {})
    if "bpe_path" in options and folder is not None:
        options["bpe_path"] = str(folder / options["bpe_path"])
    try:
        return SimpleTokenizer(context_length=text.get("context_length", 77), **options)
    except FileNotFoundError as error:
        raise InputError(f"{name}: text_cfg.tokenizer_kwargs.bpe_path: {error}") from error
    except (OSError, EOFError) as error:
        if path := options.get("bpe_path"):
            check_readable(path)
        raise InputError(f"{options.get('bpe_path')}: not a gzip BPE file ({error})") from error


def build_open_clip(config: Path | str) -> tuple[CLIP | CustomTextCLIP, SimpleTokenizer, int]:
    """A randomly initialised open_clip model, its tokenizer and its image size; nothing is fetched.

    ``config``: an open_clip JSON file or the name of a built-in open_clip model. A model that
    cannot be built is an :class:`InputError`.
    """
    register_synthetic_towers()
    options, name, folder = _read_config(config)
    vision, text = dict(options["vision_cfg"]), dict(options["text_cfg"])
    vision["timm_model_pretrained"] = False
    tokenizer = _build_tokenizer(text, name, folder)
    keep = {"quick_gelu", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
    extra = {key: value for key, value in options.items() if key in keep}
    kind = CustomTextCLIP if options.get("custom_text") else CLIP
    try:
        model = kind(
            embed_dim=options["embed_dim"], vision_cfg=CLIPVisionCfg(**vision),
            text_cfg=CLIPTextCfg(**text), **extra,
        )  # fmt: skip
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{name}: open_clip cannot build this model: {error}") from error
    size = vision.get("image_size", CLIPVisionCfg.image_size)
    if not isinstance(size, int):
        raise InputError(f"{name}: vision_cfg.image_size: one number is expected, found {size}")
    return model, tokenizer, size


def _load_weights(model: CLIP | CustomTextCLIP, checkpoint: Path, name: str) -> None:
    try:
        state = load_state_dict(str(checkpoint), weights_only=True)
    except READ_ERRORS as error:
        raise InputError(
            f"{checkpoint}: not a readable checkpoint ({type(error).__name__}); it may be "
            "truncated: delete it and fetch it again"
        ) from error
    check_tensors(checkpoint, state, kind="CLIP")
    if isinstance(model, CustomTextCLIP) and "positional_embedding" in state:
        state = convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    missing = sorted(set(expected) - set(state))
    unknown = sorted(set(state) - set(expected))
    shapes = sorted(k for k in set(expected) & set(state) if expected[k].shape != state[k].shape)
    for what, keys in (("lacks", missing), ("has the unknown", unknown)):
        if keys:
            raise WrongVariantError(
                f"{checkpoint}: not a checkpoint of {name}: it {what} {len(keys)} tensors, "
                f"first {keys[0]}"
            )
    if shapes:
        found, needed = tuple(state[shapes[0]].shape), tuple(expected[shapes[0]].shape)
        raise WrongVariantError(
            f"{checkpoint}: another variant than {name}: {shapes[0]} is {found}, expected {needed}"
        )
    model.load_state_dict({key: value.to(expected[key].dtype) for key, value in state.items()})


class FrozenClip(nn.Module):
    """A CLIP with a ConvNeXt image tower, frozen: no gradients, always in evaluation mode.

    The dense map is the output of the last stage, before the head's norm. Pooled inside a mask and
    passed through :meth:`project`, it is the CLIP feature of FC-CLIP (Yu et al. 2023, section 3.3).
    """

    image_mean: Tensor
    image_std: Tensor

    def __init__(
        self, *, model: CLIP | CustomTextCLIP, tokenizer: SimpleTokenizer, image_size: int
    ) -> None:
        super().__init__()
        trunk = getattr(model.visual, "trunk", None)
        if not isinstance(trunk, ConvNeXt):
            raise InputError(
                f"CLIP's image tower is {type(trunk or model.visual).__name__}; a timm ConvNeXt is "
                "needed, because other towers do not keep their features at other resolutions"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.dense_channels: int = trunk.num_features
        stages: Sequence[Any] = trunk.feature_info
        self.stage_channels: tuple[int, ...] = tuple(stage["num_chs"] for stage in stages)
        self.stage_strides: tuple[int, ...] = tuple(stage["reduction"] for stage in stages)
        self.stride: int = self.stage_strides[-1]
        with torch.no_grad():
            self.embed_dim: int = self.project(torch.zeros(1, trunk.num_features)).shape[-1]
        mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)
        self.register_buffer("image_mean", mean * 255, persistent=False)
        self.register_buffer("image_std", std * 255, persistent=False)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FrozenClip":
        """Stay in evaluation mode whatever ``mode`` says."""
        return super().train(False)

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature, already exponentiated."""
        return float(self.model.logit_scale.exp())

    @torch.no_grad()
    def encode_stages(self, images: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the four stages, finest first; the last is the dense map.

        Images (B, 3, H, W), float RGB, 0..255, of any size -> maps (B, C_i, about H / s_i, about
        W / s_i), with C_i of ``stage_channels`` and s_i of ``stage_strides``.
        """
        trunk = self.model.visual.trunk
        maps = [trunk.stem((images - self.image_mean) / self.image_std)]
        for stage in trunk.stages:
            maps.append(stage(maps[-1]))
        return (*maps[1:-1], trunk.norm_pre(maps[-1]))

    def encode_dense(self, images: Tensor) -> Tensor:
        """Only the last map of :meth:`encode_stages`, (B, Cc, h, w)."""
        return self.encode_stages(images)[-1]

    def project(self, pooled: Tensor) -> Tensor:
        """CLIP's head: pooled dense features (..., Cc) -> (..., E), not normalised.

        The mean over the whole map gives open_clip's ``encode_image``. Gradients reach ``pooled``.
        """
        flat = pooled.reshape(-1, pooled.shape[-1], 1, 1)
        out: Tensor = self.model.visual.head(self.model.visual.trunk.forward_head(flat))
        return out.view(*pooled.shape[:-1], -1)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """L2-normalised embeddings (N, E) of one or more ``texts``, in the model's precision."""
        if not texts:
            raise InputError("encode_text: no texts were given")
        device = self.image_mean.device
        tokens = self.tokenizer(list(texts)).to(device)
        parts = [self.model.encode_text(part) for part in tokens.split(_TEXT_BATCH)]
        return F.normalize(torch.cat(parts), dim=-1)


def load_clip(
    *, config: Path | str, checkpoint: Path | None, random_init: bool = False
) -> FrozenClip:
    """Load a frozen CLIP in float32 on the CPU.

    Args:
        config: an open_clip JSON file or a built-in open_clip model (``convnext_large_d_320``).
        checkpoint: ``.safetensors``, ``.pt`` or ``.bin`` with a state dict of that model.
        random_init: random weights and no ``checkpoint``.

    Raises:
        InputError: a missing or truncated file, or a tower that is no ConvNeXt.
        WrongVariantError: the weights of another model.
    """
    if (checkpoint is None) != random_init:
        raise InputError(
            f"CLIP {config}: give a checkpoint, or random_init=True and no checkpoint, not both"
        )
    if checkpoint is not None:
        check_readable(checkpoint, missing="a CLIP checkpoint is expected there")
    model, tokenizer, size = build_open_clip(config)
    frozen = FrozenClip(model=model, tokenizer=tokenizer, image_size=size)
    if checkpoint is not None:
        _load_weights(model, Path(checkpoint), str(config))
    return frozen
