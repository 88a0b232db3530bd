"""The compiled network: the same predictions, one graph a size, and what is refused."""

import shutil
import sysconfig
from pathlib import Path

import pytest
import torch

from possam.model.ops.compilation import compiled
from possam.model.segmenter import Segmenter
from possam.runtime.errors import InputError, PossamError
from tests.support.model_fakes import FakeClip, FakeSam, small_possam

COMPILER = shutil.which("g++") or shutil.which("clang++")
HEADERS = Path(sysconfig.get_path("include"), "Python.h").is_file()
needs_compiler = pytest.mark.skipif(
    not (COMPILER and HEADERS), reason="needs a C++ compiler and Python's headers"
)


def network(*, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    possam = small_possam(decoder_layers=1, seed=seed)
    segmenter = Segmenter(sam=FakeSam(), clip=FakeClip(), possam=possam, precision="fp32")
    return segmenter.eval().requires_grad_(False)


def images(height: int, width: int) -> torch.Tensor:
    return 255 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@needs_compiler
def test_every_network_predicts_the_same_as_it_is_and_compiled() -> None:
    for plain in (network(seed=0), network(seed=1)):
        fast = compiled(plain, "inductor")
        assert fast is not plain and not fast.training
        assert fast.possam is plain.possam and fast.clip is plain.clip
        expected, found = plain(images(32, 32)), fast(images(32, 32))
        for name in ("mask_logits", "ldp_embeddings", "clip_embeddings", "iou"):
            torch.testing.assert_close(
                getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5
            )
        assert (found.padded_size, found.image_size) == (expected.padded_size, (32, 32))


def test_none_changes_nothing() -> None:
    plain = network()
    assert compiled(plain, "none") is plain


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(InputError, match=r"cuda_graphs needs a model on CUDA.*cpu"):
        compiled(network(), "cuda_graphs")


def test_a_compiler_that_is_missing_is_told() -> None:
    fast = compiled(network(), "inductor")
    with (
        torch._inductor.config.patch({"cpp.cxx": ("/nonexistent/c++",), "fx_graph_cache": False}),
        pytest.raises(PossamError, match=r"compile: inductor: .*choose none"),
    ):
        fast(images(48, 32))  # another size, for which nothing is compiled yet
