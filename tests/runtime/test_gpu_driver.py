"""A driver that is too old for the installed torch, and what to do about it."""

import os
from importlib import metadata
from pathlib import Path

import pytest

from possam.runtime import gpu_driver
from possam.runtime.errors import InputError
from possam.runtime.gpu_driver import driver_fault, driver_version


@pytest.mark.parametrize(
    ("driver", "cuda"),
    [
        ("580.65.06", "13.0"),
        ("590.1", "13.2"),
        ("1000.0", "13.0"),
        ("525.60.13", "12.6"),
        ("535.183.01", "12.6"),
        ("580.65.06", "12.6"),
        ("1.0", "14.0"),  # nothing is known of it, so nothing is claimed
    ],
)
def test_drivers_that_are_new_enough(driver: str, cuda: str) -> None:
    assert driver_fault(driver, cuda) is None


def test_the_cuda_12_build_is_named_where_it_helps() -> None:
    fault = driver_fault("535.183.01", "13.0")
    assert fault is not None
    torch = metadata.version("torch").split("+")[0]
    assert "NVIDIA driver 535.183.01 is too old" in fault and "580.65.06 or newer" in fault
    assert f"torch=={torch}+cu126" in fault and "525.60.13" in fault
    # One digit less is enough to be too old.
    assert driver_fault("580.65.05", "13.0") is not None
    assert driver_fault("525.60.12", "12.6") is not None
    # A driver older than CUDA 12 needs is not helped by that build.
    old = driver_fault("470.57.02", "13.0")
    assert old is not None and "cu126" not in old and "newer driver" in old


def test_a_torch_without_cuda() -> None:
    fault = driver_fault("580.65.06", None)
    assert fault is not None and "without CUDA" in fault and "make setup" in fault


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ``nvidia-smi`` to be written."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    path = tmp_path / "nvidia-smi"
    path.touch(0o755)
    return path


@pytest.mark.parametrize(
    ("line", "version"),
    [
        ("printf '535.183.01\\n535.183.01\\n'", "535.183.01"),
        ("echo 'NVIDIA-SMI has failed because it could not talk to the driver'; exit 9", None),
        ("echo No devices were found", None),
        ("true", None),
    ],
)
def test_what_nvidia_smi_prints(smi: Path, line: str, version: str | None) -> None:
    smi.write_text(f"#!/bin/sh\n{line}\n")
    assert driver_version() == version


def test_no_driver_at_all(smi: Path) -> None:
    smi.unlink()
    assert driver_version() is None


def test_a_stage_on_a_gpu_that_torch_cannot_use_names_the_driver(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from possam.runtime.gpu_driver import check_device

    smi.write_text("#!/bin/sh\necho 535.183.01\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(InputError, match=r"torch sees no GPU: NVIDIA driver 535.* is too old"):
        check_device("cuda")
    smi.write_text("#!/bin/sh\necho 580.65.06\n")
    with pytest.raises(InputError, match="torch sees no GPU; use --device cpu"):
        check_device("cuda")
    # Where torch can use the GPU (forward compatibility libraries), nothing is refused.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    smi.write_text("#!/bin/sh\necho 535.183.01\n")
    assert check_device("cuda:1") == "cuda:1"
    assert gpu_driver.minimum_driver("13.0") == "580.65.06"
