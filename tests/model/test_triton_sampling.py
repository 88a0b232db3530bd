"""Triton's kernels without a GPU: interpreted, they agree; compiled, they are accepted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from possam.model.ops import compiled_sampling, deformable
from possam.model.ops.deformable import _triton_sampler

triton = pytest.importorskip("triton", reason="Triton exists on Linux only")


def test_interpreted_kernels_agree_with_grid_sample() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.triton_agreement"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 4
    for case, differences in found.items():
        for name, difference in differences.items():
            assert difference < 2e-5, (case, name)


@pytest.mark.parametrize("capability", [80, 90])  # A100, H100
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_kernels_compile_for_gpus(
    kernel: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from possam.model.ops import triton_sampling

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = getattr(triton_sampling, kernel)
    constants = {"LEVELS": 3, "POINTS": 4, "BLOCK": 32, "LANES": 32}
    numbers = ("queries", "cells", "heads", "channels")
    signature = {
        name: "constexpr"
        if name in constants
        else "i32"
        if name in numbers
        else "*i32"
        if name == "sizes"
        else "*fp32"
        for name in function.arg_names
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000


def test_where_triton_does_not_run_grid_sample_does_with_a_warning() -> None:
    _triton_sampler.cache_clear()
    with pytest.warns(UserWarning, match="Triton does not run on cpu .* slower"):
        assert _triton_sampler(torch.device("cpu")) is None
    _triton_sampler.cache_clear()


def test_where_triton_does_not_run_the_layer_takes_grid_sample(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deformable, "_triton_sampler", lambda device: None)
    assert deformable._sampler(torch.device("meta")) is deformable.sample_plain
    assert deformable._sampler(torch.device("cpu")) is compiled_sampling.sample_sum
