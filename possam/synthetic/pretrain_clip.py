"""Train the small CLIP of the mini world on region captions.

Whole scenes go through the image tower. Features pooled in the ground-truth masks go through CLIP's
own head and are classified among one caption per class (random name, random template), so that the
negatives of a region are all other classes. A few crops per batch, encoded as whole images, keep
``encode_image`` useful.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from safetensors.torch import save
from torch import Tensor

from possam.model.encoders.clip import (
    SYNTHETIC_CONVNEXT,
    FrozenClip,
    build_open_clip,
    load_clip,
)
from possam.runtime.files import atomic_write, write_json
from possam.synthetic.fitting import (
    FitSettings,
    SceneSet,
    fit,
    half,
    one_thread,
    render_scene_set,
    segment_masks,
)
from possam.synthetic.vocabulary import (
    CLASSES,
    TEMPLATES,
    caption_words,
    domain_classes,
    write_bpe,
)

CONFIG_NAME = "synthetic_clip.json"
WEIGHTS_NAME = "synthetic_clip.safetensors"
BPE_NAME = "synthetic_clip_bpe.txt.gz"
EMBED_DIM = 128
CROP_SIZE = 64
MAX_LOGIT_SCALE = 100.0


@dataclass(frozen=True, kw_only=True)
class ClipSettings(FitSettings):
    """Settings of the CLIP training."""

    iterations: int = 3_500
    batch: int = 32
    warmup: float = 0.06
    crops: int = 8
    crop_weight: float = 0.3
    image_lr: float = 2e-3
    text_lr: float = 1e-3
    mask_shift: int = 2
    """Masks are shifted by up to this many pixels, because predicted masks are not exact either."""


def clip_config(vocabulary_size: int) -> dict[str, object]:
    """The open_clip configuration; the BPE file's path is relative to the configuration file."""
    return {
        "embed_dim": EMBED_DIM,
        "init_logit_scale": float(np.log(20.0)),
        "vision_cfg": {
            "timm_model_name": SYNTHETIC_CONVNEXT,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": CROP_SIZE,
        },
        "text_cfg": {
            "context_length": 20,
            "vocab_size": vocabulary_size,
            "tokenizer_kwargs": {"bpe_path": BPE_NAME},
            "width": 128,
            "heads": 4,
            "layers": 2,
        },
    }


def _captions(rng: np.random.Generator, indices: list[int]) -> list[str]:
    """One caption of each class: a random name in a random template."""
    return [
        TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(names[int(rng.integers(len(names)))])
        for names in (CLASSES[index].names for index in indices)
    ]


def _crop_grid(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """Sampling grids of square crops around masks (n, H, W) -> (n, CROP_SIZE, CROP_SIZE, 2)."""
    size = masks.shape[-1]
    theta = torch.zeros(len(masks), 2, 3)
    for row, mask in zip(theta, masks, strict=True):
        y, x = torch.nonzero(mask, as_tuple=True)
        left, right, top, bottom = int(x.min()), int(x.max()), int(y.min()), int(y.max())
        side = min(size, max(24.0, max(right - left, bottom - top) * rng.uniform(1.0, 1.8)))
        jitter = rng.uniform(-0.1, 0.1, 2) * side
        row[0, 0] = row[1, 1] = side / size
        row[0, 2] = (left + right + 2 * jitter[0]) / size - 1
        row[1, 2] = (top + bottom + 2 * jitter[1]) / size - 1
    return F.affine_grid(theta, [len(masks), 3, CROP_SIZE, CROP_SIZE], align_corners=False)


def pool_regions(features: Tensor, masks: Tensor) -> Tensor:
    """Mean features in masks: (B, C, h, w), (B, M, H, W) with H = stride * h -> (B, M, C)."""
    size = (features.shape[-2], features.shape[-1])
    weights = F.adaptive_avg_pool2d(masks, size).flatten(2)
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-4)
    return weights @ features.flatten(2).transpose(1, 2)


class _ClipTrainer:
    """One training: model, data, and the loss of a batch."""

    def __init__(self, *, clip: FrozenClip, scenes: SceneSet, settings: ClipSettings, seed: int):
        self.clip, self.scenes, self.settings = clip, scenes, settings
        self.model: CLIP = clip.model
        self.rng = np.random.default_rng([seed, 11])
        self.known = [c.index for c in domain_classes("web")]
        self.column = torch.full((len(CLASSES),), -1)
        self.column[self.known] = torch.arange(len(self.known))

    def loss(self) -> tuple[Tensor, float]:
        """Loss of the next random batch, and the share of its regions with the right caption."""
        settings, rng = self.settings, self.rng
        drawn = self.scenes.draw(rng, settings.batch, flips=(-1,))
        ids, classes = drawn.ids, drawn.classes
        images = (drawn.images - self.clip.image_mean) / self.clip.image_std
        present = classes >= 0
        masks = segment_masks(ids, classes.shape[1])
        shift = rng.integers(-settings.mask_shift, settings.mask_shift + 1, 2).tolist()
        rolled = torch.roll(masks, shift, dims=(2, 3))
        tokens = self.clip.tokenizer(_captions(rng, self.known))
        flat_masks, flat_classes = masks[present], classes[present]
        picked = torch.from_numpy(rng.choice(len(flat_masks), settings.crops, replace=False))
        owner = present.nonzero()[:, 0][picked]
        crops = F.grid_sample(
            images[owner], _crop_grid(flat_masks[picked], rng),
            padding_mode="reflection", align_corners=False,
        )  # fmt: skip
        with torch.autocast("cpu", torch.bfloat16):
            features = self.model.visual.trunk.forward_features(images)
            text = self.model.encode_text(tokens)
            whole = self.model.encode_image(crops)
        text = F.normalize(text.float(), dim=-1) * self.model.logit_scale.exp()
        pooled = pool_regions(features.float(), rolled)[present]
        logits = F.normalize(self.clip.project(pooled), dim=-1) @ text.T
        target = self.column[flat_classes]
        crop_logits = F.normalize(whole.float(), dim=-1) @ text.T
        loss = F.cross_entropy(logits, target)
        loss = loss + settings.crop_weight * F.cross_entropy(crop_logits, target[picked])
        return loss, float((logits.argmax(1) == target).float().mean())


def pretrain_clip(
    *,
    out: Path,
    seed: int,
    settings: ClipSettings | None = None,
    scenes: SceneSet | None = None,
    start: Path | None = None,
) -> None:
    """Train the CLIP; write its configuration, BPE file and fp16 weights into the folder ``out``.

    Runs on one CPU thread; the same seed on the same machine and library versions gives the same
    weights. ``scenes``: already rendered scenes of domain "web" (else ``settings.scenes`` are
    rendered). ``start``: folder of towers to go on from; None: random weights. Raises
    :class:`TrainingError` if the loss is not finite.
    """
    settings = settings or ClipSettings()
    if scenes is None:
        scenes = render_scene_set(settings.scenes, domain="web", seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / CONFIG_NAME, clip_config(write_bpe(out / BPE_NAME, caption_words())))
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(seed)
        if start is None:
            model, tokenizer, size = build_open_clip(out / CONFIG_NAME)
            clip = FrozenClip(model=model, tokenizer=tokenizer, image_size=size)
        else:
            clip = load_clip(config=out / CONFIG_NAME, checkpoint=start / WEIGHTS_NAME)
            model = clip.model
        model.requires_grad_(True)
        model.train()
        trainer = _ClipTrainer(clip=clip, scenes=scenes, settings=settings, seed=seed)
        visual = [p for name, p in model.named_parameters() if name.startswith("visual.")]
        rest = [p for name, p in model.named_parameters() if not name.startswith("visual.")]

        @torch.no_grad()
        def limit() -> None:
            model.logit_scale.clamp_(0, float(np.log(MAX_LOGIT_SCALE)))

        fit(
            model,
            trainer.loss,
            [{"params": visual, "lr": settings.image_lr}, {"params": rest, "lr": settings.text_lr}],
            parameters=list(model.parameters()),
            settings=settings,
            label="synthetic CLIP",
            measured="regions right",
            after_step=limit,
        )
        clip.requires_grad_(False)
    with atomic_write(out / WEIGHTS_NAME, "wb") as stream:
        stream.write(save(half(model), metadata={"format": "pt"}))
