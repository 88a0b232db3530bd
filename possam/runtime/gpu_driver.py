"""Which devices can be used here, and whether the NVIDIA driver is new enough for torch."""

import importlib.metadata
import shutil

from possam.runtime.errors import InputError
from possam.runtime.short_commands import ask

_MINIMUM = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
"""CUDA's major version -> the oldest Linux driver that runs all its minor versions. Source: NVIDIA,
CUDA Toolkit release notes, minimum driver for minor version compatibility."""


def driver_version() -> str | None:
    """Version of this machine's NVIDIA driver, ``"580.65.06"``; None where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    answer = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    lines = (answer.good or "").split()
    return lines[0] if lines and lines[0][0].isdigit() else None


def minimum_driver(cuda: str | None) -> str | None:
    """The oldest driver for ``cuda`` (``torch.version.cuda``, such as ``"13.0"``).

    None: not known, or a torch without CUDA.
    """
    return _MINIMUM.get(int(cuda.split(".")[0])) if cuda else None


def driver_fault(driver_version: str, cuda: str | None) -> str | None:
    """Why this driver cannot run a torch built for ``cuda``, with the remedy; None if it can.

    Args:
        driver_version: as nvidia-smi prints it.
        cuda: ``torch.version.cuda``; None: a torch without CUDA.
    """
    torch, vision = (importlib.metadata.version(name) for name in ("torch", "torchvision"))
    if cuda is None:
        return f"torch {torch} is built without CUDA; make setup installs the locked build"
    minimum = minimum_driver(cuda)
    if minimum is None or _numbers(driver_version) >= _numbers(minimum):
        return None
    fault = (
        f"NVIDIA driver {driver_version} is too old for torch {torch}, a build for CUDA {cuda}, "
        f"which needs driver {minimum} or newer"
    )
    if _numbers(driver_version) < _numbers(_MINIMUM[12]) or int(cuda.split(".")[0]) <= 12:
        return f"{fault}; a newer driver has to be installed"
    return (
        f"{fault}; use a node with a newer driver, or install the CUDA 12 builds "
        f"torch=={_public(torch)}+cu126 and torchvision=={_public(vision)}+cu126, which need "
        f"driver {_MINIMUM[12]} (docs/your-cluster.md, An older driver)"
    )


def fault_here() -> str | None:
    """The fault of this machine's driver; None also where there is no driver."""
    if (driver := driver_version()) is None:
        return None
    import torch

    return driver_fault(driver, torch.version.cuda)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _public(version: str) -> str:
    return version.split("+")[0]


def check_device(device: str) -> str:
    """Return ``device`` if it can be used.

    Raises:
        InputError: unknown, or CUDA without a GPU; nothing falls back to another device.
    """
    import torch

    kind = device.split(":")[0]
    if kind not in {"cpu", "cuda"}:
        raise InputError(f"--device: unknown device {device!r}; valid choices: cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        if fault := fault_here():
            raise InputError(f"--device: cuda was asked for, but torch sees no GPU: {fault}")
        raise InputError("--device: cuda was asked for, but torch sees no GPU; use --device cpu")
    return device
