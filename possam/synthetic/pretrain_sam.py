"""Train the small SAMs of the mini world: one click, three masks, predicted IoU.

Trained as SAM is (Kirillov et al. 2023, appendix A), but with one click only. An auxiliary loss,
which makes embeddings alike within a segment and different between segments, lets the encoder learn
much sooner which pixels belong together. The head of that loss is thrown away.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor, nn

from possam.model.encoders.sam import ARCHITECTURES, build_sam, find_architecture, load_sam
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write
from possam.synthetic.fitting import FitSettings, SceneSet, fit, half, one_thread, render_scene_set

VARIANTS: tuple[str, ...] = tuple(name for name in ARCHITECTURES if name.startswith("synthetic_"))


@dataclass(frozen=True, kw_only=True)
class SamSettings(FitSettings):
    """Settings of one SAM training; ``clicks``: prompts per image."""

    iterations: int = 2_000
    batch: int = 16
    warmup: float = 0.1
    clicks: int = 4
    lr: float = 1e-3
    bce_weight: float = 5.0
    mean_weight: float = 0.4
    """Weight of the three masks' mean loss beside the best one's."""
    part_share: float = 0
    """Share of clicks that ask for the segment's part below them (lit or shaded), not for all."""
    embedding_weight: float = 1.0
    embedding_pixels: int = 256


def weights_name(variant: str) -> str:
    """File name of a variant's checkpoint."""
    return f"{variant.replace('synthetic', 'synthetic_sam')}.pth"


def decode_clicks(sam: Sam, embeddings: Tensor, clicks: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of one click on each of B images: ``MaskDecoder.predict_masks`` for a batch.

    ``embeddings`` (B, C, h, w), ``clicks`` (B, 2) in pixels, x then y. Returns the logits of three
    masks (B, 3, 4h, 4w) and their predicted IoU (B, 3).
    """
    decoder, prompt = sam.mask_decoder, sam.prompt_encoder
    labels = torch.ones(len(clicks), 1, device=clicks.device)
    sparse, dense = prompt(points=(clicks[:, None], labels), boxes=None, masks=None)
    output = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight))
    tokens = torch.cat((output.expand(len(clicks), -1, -1), sparse), dim=1)
    position = prompt.get_dense_pe().expand(len(clicks), -1, -1, -1)
    states, source = decoder.transformer(embeddings + dense, position, tokens)
    source = source.transpose(1, 2).reshape(embeddings.shape)
    upscaled = decoder.output_upscaling(source)
    kernels = [
        mlp(states[:, 1 + k]) for k, mlp in enumerate(decoder.output_hypernetworks_mlps) if k > 0
    ]
    logits = torch.einsum("bkc,bchw->bkhw", torch.stack(kernels, dim=1), upscaled)
    return logits, decoder.iou_prediction_head(states[:, 0])[:, 1:]


def mask_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boolean masks (..., H, W), broadcast against each other -> (...)."""
    union = (first | second).sum((-2, -1)).clamp(min=1)
    return (first & second).sum((-2, -1)) / union


def asked_pixels(shaded: Tensor, clicks: Tensor, whole: Tensor) -> Tensor:
    """Pixels that clicks may ask for, bool (n, H, W): those shaded like it, or all if ``whole``.

    ``shaded`` bool (n, H, W), ``clicks`` (n, 2) in pixels, x then y, ``whole`` bool (n,).
    """
    x, y = clicks.long().T
    like = shaded == shaded[torch.arange(len(clicks)), y, x][:, None, None]
    return like | whole[:, None, None]


class _PixelHead(nn.Module):
    """Head of the auxiliary loss: pixel embeddings at four times the encoder's resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(channels, 64, 2, 2), nn.GELU(), nn.ConvTranspose2d(64, 32, 2, 2)
        )
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.shift = nn.Parameter(torch.tensor(-5.0))

    def loss(self, embeddings: Tensor, ids: Tensor, pick: Tensor) -> Tensor:
        """Balanced same-segment loss over pixel pairs: ids (B, H, W), flat indices pick (B, n)."""
        pixels = F.normalize(self.layers(embeddings).float(), dim=1)
        step = ids.shape[-1] // pixels.shape[-1]
        labels = ids[:, step // 2 :: step, step // 2 :: step].flatten(1).gather(1, pick)
        chosen = pixels.flatten(2).gather(2, pick[:, None].expand(-1, pixels.shape[1], -1))
        logits = self.scale * (chosen.transpose(1, 2) @ chosen) + self.shift
        same = (labels[:, :, None] == labels[:, None, :]).float()
        share = same.mean()
        weight = torch.where(same > 0, 0.5 / share, 0.5 / (1 - share).clamp(min=1e-3))
        return F.binary_cross_entropy_with_logits(logits, same, weight=weight)


class _SamTrainer:
    """One training: model, data, and the loss of a batch."""

    def __init__(
        self, sam: Sam, head: _PixelHead, scenes: SceneSet, settings: SamSettings, seed: int
    ) -> None:
        self.sam, self.head, self.scenes, self.settings = sam, head, scenes, settings
        self.rng = np.random.default_rng([seed, 13])
        self.noise = torch.Generator().manual_seed(seed)

    def _clicks(self, masks: Tensor) -> Tensor:
        """A click (x, y) inside each mask, (n, H, W) -> (n, 2), at a random depth."""
        coarse = F.avg_pool2d(F.avg_pool2d(masks[:, None], 4), 5, 1, 2)
        depth = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)[:, 0]
        freedom = 2 * torch.rand(len(masks), 1, 1, generator=self.noise)
        score = depth + freedom * torch.rand(masks.shape, generator=self.noise)
        best = score.masked_fill(masks == 0, -1).flatten(1).argmax(1)
        return torch.stack((best % masks.shape[-1], best // masks.shape[-1]), dim=1).float()

    def loss(self) -> tuple[Tensor, float]:
        """Loss of the next random batch, and the mean IoU of the masks that the head chooses."""
        settings, rng = self.settings, self.rng
        drawn = self.scenes.draw(rng, settings.batch, flips=(-1, -2))
        images, ids = drawn.images, drawn.ids
        counts = (drawn.classes >= 0).sum(1).numpy()
        numbers = [rng.permutation(np.resize(np.arange(n), settings.clicks)) for n in counts]
        chosen = torch.from_numpy(np.concatenate(numbers)) + 1
        owner = torch.arange(settings.batch).repeat_interleave(settings.clicks)
        masks = (ids[owner] == chosen[:, None, None]).float()
        clicks = self._clicks(masks)
        if settings.part_share:
            whole = torch.rand(len(clicks), generator=self.noise) >= settings.part_share
            masks = masks * asked_pixels(drawn.shaded[owner], clicks, whole)
        images = (images - self.sam.pixel_mean) / self.sam.pixel_std
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = self.sam.image_encoder(images)
            logits, predicted = decode_clicks(self.sam, embeddings[owner], clicks)
        logits, predicted = logits.float(), predicted.float()
        size = (logits.shape[-2], logits.shape[-1])
        target = F.adaptive_avg_pool2d(masks[:, None], size).expand_as(logits)
        losses = self._mask_losses(logits, target)
        iou = mask_iou(logits.detach() > 0, target > 0.5)
        loss = losses.min(1).values.mean() + settings.mean_weight * losses.mean()
        loss = loss + F.mse_loss(predicted, iou)
        pixels = logits.shape[-1] * logits.shape[-2]
        pick = torch.from_numpy(rng.integers(pixels, size=(len(ids), settings.embedding_pixels)))
        loss = loss + settings.embedding_weight * self.head.loss(embeddings.float(), ids, pick)
        choice = iou.gather(1, predicted.argmax(1, keepdim=True))
        return loss, float(choice.mean())

    def _mask_losses(self, logits: Tensor, target: Tensor) -> Tensor:
        """Weighted cross-entropy plus dice of each mask: (n, 3, h, w) twice -> (n, 3)."""
        bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((2, 3))
        soft = logits.sigmoid()
        dice = 1 - (2 * (soft * target).sum((2, 3)) + 1) / ((soft + target).sum((2, 3)) + 1)
        return self.settings.bce_weight * bce + dice


def pretrain_sam(
    *,
    variant: str,
    out: Path,
    seed: int,
    settings: SamSettings | None = None,
    scenes: SceneSet | None = None,
    start: Path | None = None,
) -> None:
    """Train one SAM (of :data:`VARIANTS`); write its fp16 state dict into the folder ``out``.

    Runs on one CPU thread; the same seed on the same machine and library versions gives the same
    weights. ``scenes``: already rendered scenes of domain "web" (else ``settings.scenes`` are
    rendered). ``start``: folder of towers to go on from; None: random weights. Raises TrainingError
    if the loss is not finite, InputError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise InputError(f"pretrain_sam: variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    settings = settings or SamSettings()
    if scenes is None:
        scenes = render_scene_set(settings.scenes, domain="web", seed=seed)
    with torch.random.fork_rng(), one_thread():
        torch.manual_seed(seed)
        if start is None:
            sam = build_sam(find_architecture(variant))
        else:
            sam = load_sam(start / weights_name(variant), architecture=variant)
            sam.requires_grad_(True)
        head = _PixelHead(find_architecture(variant).out_channels)
        # segment_anything starts position embeddings at zero; short trainings leave it slowly.
        if start is None and sam.image_encoder.pos_embed is not None:
            nn.init.trunc_normal_(sam.image_encoder.pos_embed, std=0.02)
        sam.train()
        trainer = _SamTrainer(sam, head, scenes, settings, seed)
        parameters = [*sam.parameters(), *head.parameters()]
        fit(
            sam,
            trainer.loss,
            [{"params": parameters, "lr": settings.lr}],
            parameters=parameters,
            settings=settings,
            label=variant,
            measured="IoU of chosen masks",
        )
    content = io.BytesIO()  # torch.save would write a file's name into the file
    torch.save(half(sam), content)
    with atomic_write(out / weights_name(variant), "wb") as stream:
        stream.write(content.getvalue())
