"""Nested values under the flat names, and as the short texts, that MLflow takes."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

LONGEST = 5000
"""Characters of a text."""

_FORBIDDEN = re.compile(r"[^\w\-. /]")


def flatten_values(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys; lists and scalars are leaves."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten_values(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested parameters as text: dotted keys, strings as they are, everything else as JSON."""
    return {
        clean(key): _short(item if isinstance(item, str) else json.dumps(item, sort_keys=True))
        for key, item in flatten_values(value, prefix).items()
        if key
    }


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... ({len(text)} characters)"


def clean(name: str) -> str:
    """A name with the characters that MLflow allows in keys (brackets and others become ``_``)."""
    return _FORBIDDEN.sub("_", name).strip("/ ")[:240]


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among ``values``, under clean names."""
    return {
        clean(key): float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }
