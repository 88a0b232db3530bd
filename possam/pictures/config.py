"""A model's folder: what it holds, and how it is described.

A folder has ``config.json``, the trained weights, a model card, and the towers that are published
nowhere else. What is not in the folder is named with its SHA-256, so that no other file is taken.
"""

from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from possam.model.options import AutomaticMaskOptions, InferenceOptions, Precision
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.options import Options

CONFIG = "config.json"
CARD = "README.md"
FORMAT: Literal["possam-model-1"] = "possam-model-1"


class FileParams(Options):
    """A file by name and SHA-256; ``asset``: where it comes from, in ``params/assets.yaml``."""

    file: str
    sha256: str
    asset: str | None = None


class ModelConfig(Options):
    """What is needed to run a model.

    ``scale``: of its training; ``synthetic``: whether it knows only the procedural world;
    ``inference``: with the resolution for pictures of any kind; ``clip_config``: an open_clip
    model, or one of ``clip_files``; ``weights``: ``None`` for a model that was not trained;
    ``automatic_masks``: instead of weights, how SAM's automatic masks are made.
    """

    format: Literal["possam-model-1"]
    name: str
    scale: str
    synthetic: bool
    precision: Precision
    templates: tuple[str, ...]
    inference: InferenceOptions
    sam_architecture: str | None
    sam: FileParams | None
    clip_config: str
    clip: FileParams
    clip_files: tuple[FileParams, ...] = ()
    weights: FileParams | None
    automatic_masks: AutomaticMaskOptions | None = None


def read_config(folder: Path) -> ModelConfig:
    """The description of a model's folder, or an InputError if it is no such folder."""
    path = folder / CONFIG
    content = read_json(path, missing="not a model's folder; possam export writes one")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise InputError(f"{path}: format {FORMAT} is expected, not {found!r}; export it again")
    try:
        return ModelConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where}: {first['msg']}; export the model again") from error
