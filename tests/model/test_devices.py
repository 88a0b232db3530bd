"""The network on CUDA without a GPU: PyTorch's fake tensors know shapes and devices, no numbers.

An operator that meets tensors of two devices raises an error, as on the device itself.
"""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from possam.model.encoders.sam import ARCHITECTURES, SamEncoder, build_sam
from possam.model.inference import MaskScores, classify
from possam.model.segmenter import Segmenter
from tests.support.model_fakes import (
    FakeClip,
    FakeSam,
    inference_options,
    random_text,
    small_possam,
)

CUDA = torch.device("cuda", 0)


def on_fake_cuda(module: torch.nn.Module, mode: FakeTensorMode) -> dict[str, Any]:
    """Fake parameters and buffers of ``module``, on CUDA."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: mode.from_tensor(tensor).to(CUDA) for name, tensor in tensors}


@pytest.fixture
def segmenter() -> Segmenter:
    sam = SamEncoder(build_sam(ARCHITECTURES["synthetic_b"]).image_encoder)
    possam = small_possam(backbone_channels=(sam.channels,))
    network = Segmenter(sam=sam, clip=FakeClip(), possam=possam, precision="fp32")
    return network.eval().requires_grad_(False)


def test_inference_stays_on_its_device(segmenter: Segmenter) -> None:
    names = random_text(classes=5, synonyms=1).names
    seen = torch.arange(5) % 2 == 0
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        with warnings.catch_warnings():
            # Triton needs a driver; what stands in for it is looked at here.
            warnings.filterwarnings("ignore", message="Triton does not run")
            raw = functional_call(
                segmenter,
                on_fake_cuda(segmenter, mode),
                (torch.zeros(1, 3, 128, 128, device=CUDA),),
            )
        found = [raw.mask_logits, raw.ldp_embeddings, raw.clip_embeddings, raw.iou]
        assert all(tensor.device == CUDA for tensor in found)

        own = mode.from_tensor(names).to(CUDA)
        # The vocabulary's own check asks for numbers.
        text: Any = SimpleNamespace(num_classes=5, similarity=lambda x: x.float() @ own.T)
        head: Any = SimpleNamespace(
            class_logits=lambda x, text: torch.cat((text.similarity(x),) * 2, -1)[..., :6]
        )
        scores: MaskScores = classify(
            raw,
            text,
            possam=head,
            clip_logit_scale=10.0,
            seen=mode.from_tensor(seen).to(CUDA),
            options=inference_options(),
        )
        assert scores.class_scores.device == CUDA


def test_two_devices_are_noticed() -> None:
    network = Segmenter(
        sam=FakeSam(), clip=FakeClip(), possam=small_possam(), precision="fp32"
    ).eval()
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        torch.no_grad(),
        pytest.raises(Exception, match="same device"),
    ):
        own = on_fake_cuda(network, mode)
        own["possam.void_embed"] = own["possam.void_embed"].cpu()
        name = next(name for name in own if name.startswith("possam.iou_head"))
        own[name] = own[name].cpu()
        functional_call(network, own, (torch.zeros(1, 3, 64, 64, device=CUDA),))
