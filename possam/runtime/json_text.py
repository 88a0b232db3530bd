"""JSON text to values, without surprises."""

import json
from collections import Counter
from typing import Any


def parse_json(content: bytes | str) -> Any:
    """The value of JSON text: bytes are UTF-8, and may begin with a byte order mark.

    NaN and infinities are read, although JSON has none: whoever uses the field names it.

    Raises:
        ValueError: no JSON; a number of thousands of digits; a key that is written twice in one
            object; values that are nested a thousand deep.
    """
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError as error:
        raise ValueError("values are nested too deep") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice!r} is written twice in one object")
    return found
