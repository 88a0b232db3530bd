"""Reading files of weights: PyTorch's and safetensors', tensors only."""

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from possam.runtime.errors import InputError
from possam.runtime.reading import check_readable

READ_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)
"""What PyTorch and safetensors raise for files that are truncated or of another kind."""


def read_state_dict(path: Path, *, kind: str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file or one of ``torch.save``, by name, on the CPU.

    ``kind`` says in messages what the file should hold (``"SAM"``). A file that is missing, may not
    be read, is truncated, or holds no mapping of names to tensors, is an InputError.
    """
    check_readable(path, missing=f"a {kind} checkpoint is expected there")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: not a readable PyTorch checkpoint ({type(error).__name__}); it may be "
            "truncated: delete it and fetch it again"
        ) from error
    check_tensors(path, state, kind=kind)
    return state


def check_tensors(path: Path, state: Any, *, kind: str) -> None:
    """Raise an InputError unless ``state`` maps names to tensors of finite numbers."""
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"{path}: a {kind} state dict is expected, found something else")
    for name, value in state.items():
        plain = value.layout == torch.strided and value.device.type == "cpu"
        if not (isinstance(name, str) and plain) or value.is_complex() or value.is_quantized:
            raise InputError(f"{path}: {name}: an ordinary tensor is expected; fetch it again")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name}: a number is not finite; fetch it again")
