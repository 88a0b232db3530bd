"""Which extra of this package a missing module belongs to, and how it is installed."""

import importlib.metadata
import re

_DISTRIBUTIONS = {"panopticapi": "panopticapi-lite", "markdown_it": "markdown-it-py"}
"""Distributions that are not called as the module that they install."""

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*\bextra\s*==\s*['\"]([a-z]+)['\"]")


def missing_extra(error: BaseException) -> str | None:
    """The remedy for a module that is not installed and belongs to an extra; None for others."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    module = error.name.partition(".")[0]
    wanted = _canonical(_DISTRIBUTIONS.get(module, module))
    try:
        requirements = importlib.metadata.requires("possam") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for line in requirements:
        if (match := _REQUIREMENT.match(line)) and _canonical(match[1]) == wanted:
            return (
                f"needs {wanted}, which is not installed; it belongs to the extra {match[2]!r}: "
                f"pip install 'possam[{match[2]}]'"
            )
    return None


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
