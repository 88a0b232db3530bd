"""Pictures of every size, in batches, through the real encoders."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from possam.model.encoders.clip import FrozenClip, load_clip
from possam.model.encoders.sam import ARCHITECTURES, SamEncoder, build_sam, load_sam
from possam.model.options import ModelOptions, ResolutionOptions
from possam.model.possam import build_possam
from possam.model.resolution import resize_for_test, target_size
from possam.model.segmenter import Segmenter
from possam.params.project import Project

ROOT = Path(__file__).resolve().parents[2]
TOWERS = ROOT / "data" / "towers"
SCALES = ("mini", "paper")
# Both sides of the windows and strides, lines of pixels, panoramas.
SIDES = st.sampled_from([1, 2, 7, 8, 16, 17, 63, 64, 65, 66, 80]) | st.integers(1, 90)


@cache
def project(scale: str) -> Project:
    return Project(scale, folder=ROOT / "params")


def resolution(scale: str) -> ResolutionOptions:
    return project(scale).scale.predict.resolution


def different_models() -> dict[str, ModelOptions]:
    """One run of each kind of model."""
    runs = {name: project("mini").run(name).model for name in sorted(project("mini").runs)}
    return {name: model for model, name in {model: name for name, model in runs.items()}.items()}


def pictures(count: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.rand(count, 3, height, width, generator=generator) * 255


@pytest.fixture(scope="module")
def clip() -> FrozenClip:
    return load_clip(
        config=TOWERS / "synthetic_clip.json", checkpoint=TOWERS / "synthetic_clip.safetensors"
    )


@pytest.fixture(scope="module")
def sam() -> SamEncoder:
    weights = TOWERS / "synthetic_sam_b.pth"
    return SamEncoder(load_sam(weights, architecture="synthetic_b").image_encoder)


def build(options: ModelOptions, sam: SamEncoder | None, clip: FrozenClip) -> Segmenter:
    """The mini scale's trained towers around an untrained model."""
    possam = build_possam(
        options,
        backbone_channels=clip.stage_channels if sam is None else [sam.channels],
        clip_channels=clip.dense_channels,
        embed_dim=clip.embed_dim,
        seed=0,
    )
    return Segmenter(sam=sam, clip=clip, possam=possam, precision="fp32").eval()


@pytest.fixture(scope="module")
def segmenter(sam: SamEncoder, clip: FrozenClip) -> Segmenter:
    return build(project("mini").scale.model, sam, clip)


@pytest.mark.parametrize("run", different_models())
def test_every_model_of_the_study(run: str, sam: SamEncoder, clip: FrozenClip) -> None:
    options = different_models()[run]
    model = build(options, sam if options.backbone == "sam" else None, clip)
    for height, width in ((1, 1), (64, 65), (2, 320), (320, 2)):
        with torch.inference_mode():
            raw = model(pictures(1, height, width))
        assert raw.mask_logits.isfinite().all() and raw.ldp_embeddings.isfinite().all()


@given(SIDES, SIDES, st.integers(1, 3))
@example(64, 65, 1)
@example(65, 64, 1)
@example(1, 1, 1)
@example(1, 1, 3)
@example(2, 2000, 1)
@example(2000, 2, 1)
@example(11, 320, 2)
@settings(max_examples=8)
def test_every_size_at_every_batch_size(
    segmenter: Segmenter, height: int, width: int, batch: int
) -> None:
    with torch.inference_mode():
        images = pictures(batch, height, width)
        raw = segmenter(images)
        padded = raw.padded_size
        assert padded[0] - 16 < height <= padded[0] and padded[1] - 16 < width <= padded[1]
        assert raw.mask_logits.shape == (batch, 30, padded[0] // 2, padded[1] // 2)
        assert raw.image_size == (height, width)
        single = segmenter(images[-1:])
    for name in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
        many, one = getattr(raw, name), getattr(single, name)
        assert many.isfinite().all()
        assert_close(many[-1:], one, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def papers_sam() -> SamEncoder:
    """ViT-B's widths, windows and patches, in two layers: one windowed, one global."""
    small = replace(ARCHITECTURES["vit_b"], depth=2, global_attention=(1,))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SamEncoder(build_sam(small).image_encoder)


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("size", [(85, 2560), (170, 2560), (2560, 85), (33, 17), (1, 1)])
def test_the_papers_sam_on_panoramas(
    papers_sam: SamEncoder, size: tuple[int, int], reduced: bool
) -> None:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        out = papers_sam(pictures(1, *size))
    assert out.shape == (1, 256, -(-size[0] // 16), -(-size[1] // 16)) and out.isfinite().all()


@pytest.mark.parametrize("scale", SCALES)
@given(st.integers(1, 20_000), st.integers(1, 20_000))
@example(1, 1)
@example(12_000, 15_000)
@example(500, 15_000)
@example(15_000, 500)
def test_what_the_towers_see_is_bounded_and_of_the_same_shape(
    scale: str, height: int, width: int
) -> None:
    options = resolution(scale)
    small = target_size((height, width), options)
    assert 1 <= min(small) <= options.size and max(small) <= options.max_size
    assert min(small) == options.size or max(small) == options.max_size
    share = max(small) / max(height, width)
    for new, old in zip(small, (height, width), strict=True):
        assert abs(new - max(1.0, old * share)) <= 1 + old / max(height, width)
    if max(height, width) <= 30 * min(height, width):
        assert min(small) >= options.max_size // 30


def test_pictures_of_the_benchmarks_size_are_as_they_are() -> None:
    image = pictures(1, 128, 128)[0].to(torch.uint8)
    seen = resize_for_test(image, resolution("mini"), padding=(124, 116, 104))
    native = project("mini").scale.inference.resolution
    assert torch.equal(seen.pixels, resize_for_test(image, native, padding=(0, 0, 0)).pixels)
    paper = project("paper").scale
    assert paper.predict.resolution == paper.inference.resolution
