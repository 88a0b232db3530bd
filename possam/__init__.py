"""PosSAM, an open-vocabulary segmenter (arXiv 2403.09620), and the pipeline of its paper."""

from typing import TYPE_CHECKING

from possam.runtime.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from possam.pictures.model import Model

__all__ = ["__version__", "load"]


def load(source: "str | Path | None" = None, *, device: str = "cpu") -> "Model":
    """Load a model that segments pictures into any words.

    Args:
        source: a folder of ``possam export``; a training's ``weights.safetensors``; the id of such
            a folder on the Hugging Face hub (``owner/name``); the name of a model that this package
            ships; ``training-free-b`` (``-l``, ``-h``) for SAM and CLIP with their official
            weights, which are downloaded on first use; ``None``: the shipped ``possam_h_coco``,
            which knows only the synthetic world that it was trained on.
        device: ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        possam.runtime.errors.InputError: there is no such model, it is damaged, or it cannot be
            fetched; or a device that cannot be used.
    """
    from possam.pictures.load import load_model

    return load_model(source, device=device)
