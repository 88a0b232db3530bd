"""Oracles and other heavy modules, imported by the tests that use them and not when tests are
collected: transformers and torchmetrics take seconds each.
"""

from importlib import import_module
from typing import Any


class LazyModule:
    """A module that is imported when one of its names is first asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest looks for such names when it collects
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)
