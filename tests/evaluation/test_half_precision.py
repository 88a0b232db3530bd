"""Decoders under bfloat16 autocast, between towers and scores that keep their precision."""

import torch

from possam.evaluation.half_precision import with_decoders_in
from possam.model.segmenter import RawPrediction
from tests.model.test_compilation import images, network


def predict(precision: str) -> tuple[RawPrediction, dict[str, torch.dtype]]:
    segmenter = with_decoders_in(precision, network())  # type: ignore[arg-type]
    dtypes: dict[str, torch.dtype] = {}
    segmenter.features.register_forward_hook(
        lambda _, __, out: dtypes.update(sam=out[0][0].dtype, clip=out[1].dtype)
    )
    segmenter.possam.register_forward_hook(
        lambda _, __, out: dtypes.update(masks=out.mask_logits.dtype)
    )
    return segmenter(images(64, 64)), dtypes


def test_only_the_decoders_run_in_it() -> None:
    (plain, before), (half, after) = predict("fp32"), predict("bf16")
    assert set(before.values()) == {torch.float32}
    assert after == {**before, "masks": torch.bfloat16}
    for field in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
        ours, reference = getattr(half, field), getattr(plain, field)
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, reference)
        assert (ours - reference).abs().max() < 0.05 * reference.abs().max()
