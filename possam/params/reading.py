"""YAML files as typed models; errors name the file, the key and the valid choices."""

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from possam.params.yaml import read_yaml
from possam.runtime.errors import InputError
from possam.runtime.options import Options

P = TypeVar("P", bound=Options)


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names that are valid where an unknown key was found."""
    for part in location[:-1]:
        inner = getattr(model.model_fields.get(str(part)), "annotation", None)
        candidates = [inner, *getattr(inner, "__args__", ())]
        found = (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
        model = next(found, model)
    return sorted(model.model_fields)


def validate(
    model: type[P],
    data: Any,
    *,
    source: str,
    choices: Mapping[str, Collection[str]] | None = None,
) -> P:
    """Check ``data`` (parsed YAML) against ``model``.

    Args:
        source: file (and entry) that the message begins with.
        choices: for fields that name something declared elsewhere, the valid names by field; shown
            if such a field is missing or not text.

    Raises:
        InputError: one line per fault: ``source``, dotted key, what is wrong, the valid choices.
    """
    known = choices or {}
    try:
        return model.model_validate(_tuples(data))
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            where = [str(part) for part in fault["loc"]] or ["(top level)"]
            line = f"{source}: {'.'.join(where)}: {fault['msg']}"
            if fault["type"] != "missing" and not isinstance(fault.get("input"), dict | list):
                line += f" (got {fault.get('input')!r})"
            if fault["type"] == "string_type" and isinstance(fault["input"], int | float):
                line += "; write it in quotes"
            if fault["type"] == "extra_forbidden":
                line += f"; valid keys: {', '.join(_fields_at(model, fault['loc']))}"
            elif where[-1] in known:
                line += f"; valid choices: {', '.join(sorted(known[where[-1]]))}"
            lines.append(line)
        raise InputError("\n".join(lines)) from error


def _tuples(value: Any) -> Any:
    """YAML lists become tuples, which strict models expect."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value


def require_checkout(folder: Path = Path("params")) -> None:
    """Raise an InputError unless ``folder`` is here: commands are called in a checkout's root."""
    if (folder / "scales").is_dir():
        return
    here = Path.cwd()
    root = next((one for one in here.parents if (one / "params/scales").is_dir()), None)
    if root is not None:
        remedy = f"call it in the root of the checkout: cd {shlex.quote(str(root))}"
    else:
        remedy = "call it in the root of a checkout of PosSAM, or link that checkout's params here"
    raise InputError(f"{folder}: no such folder in {here}; {remedy}")


def scale_names(folder: Path = Path("params")) -> list[str]:
    """Names of the scales that have a file in ``folder``, sorted; InputError if it is not here."""
    require_checkout(folder)
    return sorted(path.stem for path in (folder / "scales").glob("*.yaml"))


def read_entries(path: Path, *, may_be_empty: bool = False) -> dict[str, dict[str, Any]]:
    """A YAML file of named entries, each a mapping; the names become parts of paths."""
    data = read_yaml(path, may_be_empty=may_be_empty)
    for name, entry in data.items():
        if not re.fullmatch(r"\w+", str(name), re.ASCII):
            raise InputError(f"{path}: {name!r}: a name of letters, digits and _ is expected")
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {name}: a mapping is expected, not {entry!r}")
    return {str(name): entry for name, entry in data.items()}


def merge(base: Mapping[str, Any], difference: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``difference`` put over it, mappings merged key by key."""
    result = dict(base)
    for key, value in difference.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = merge(old, value)
        result[key] = value
    return result


def choose(kind: str, name: str, valid: Collection[str], source: str, key: str) -> None:
    """Raise an InputError unless ``name``, of a ``kind`` of thing, is among the ``valid`` ones."""
    if name not in valid:
        raise InputError(
            f"{source}: {key}: unknown {kind} {name!r}; valid choices: {', '.join(sorted(valid))}"
        )


def refuse_twins(kind: str, names: Iterable[str], source: str, key: str) -> None:
    """Raise an InputError if a name comes twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{source}: {key}: two {kind} are named {name!r}; rename one")
        seen.add(name)
