"""Parameter files are YAML 1.2, as DVC writes it; PyYAML's own loader reads YAML 1.1.

Numbers, booleans and null are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103):
``5e-05`` is a number, ``010`` is ten, and ``no``, ``on``, ``1:30`` and ``2001-01-01`` are text. A
key is the text that is written, whatever it looks like.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.constructor import ConstructorError

from possam.runtime.errors import InputError
from possam.runtime.reading import reading

_TAG = "tag:yaml.org,2002:"


def read_yaml(path: Path, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Parse one YAML mapping without repeated keys (``may_be_empty``: the file may be empty).

    Line ends of any system and a byte order mark are accepted.

    Raises:
        InputError: the file is missing, cannot be read, or is no such YAML.
    """
    with reading(path):
        content = path.read_bytes()
    try:
        data = yaml.load(content, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise InputError(f"{path}: not valid YAML: nested too deeply") from error
    if data is None and may_be_empty:
        data = {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: a mapping is expected at the top level")
    return data


def _mapping(loader: yaml.SafeLoader, node: yaml.Node) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if not isinstance(node, yaml.MappingNode):
        raise ConstructorError(None, None, "a mapping is expected", node.start_mark)
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConstructorError(None, None, "a key is no name", key_node.start_mark)
        key = str(key_node.value)
        if key in result:
            raise ConstructorError(None, None, f"key {key!r} is written twice", key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _sequence(loader: yaml.SafeLoader, node: yaml.Node) -> list[Any]:
    if not isinstance(node, yaml.SequenceNode):
        raise ConstructorError(None, None, "a list is expected", node.start_mark)
    return [loader.construct_object(item, deep=True) for item in node.value]


def _integer(text: str) -> int:
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _number(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


def _scalar(convert: Callable[[str], Any]) -> Callable[[yaml.SafeLoader, yaml.Node], Any]:
    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(None, None, "a single value is expected", node.start_mark)
        text = str(node.value)
        try:
            return convert(text)
        except (ValueError, KeyError) as error:
            kind = node.tag.removeprefix(_TAG)
            message = f"{text[:80]!r} is no valid {kind}"
            raise ConstructorError(None, None, message, node.start_mark) from error

    return construct


class _Loader(yaml.SafeLoader):
    """The tags of the core schema, and no others; an alias may not refer to what it lies in."""

    yaml_implicit_resolvers: dict[Any, Any] = {  # noqa: RUF012
        None: [
            (_TAG + "null", re.compile(r"(?:~|null|Null|NULL|)\Z")),
            (_TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")),
            (_TAG + "int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")),
            (
                _TAG + "float",
                re.compile(
                    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
                    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
                ),
            ),
        ]
    }
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        _TAG + "null": lambda loader, node: None,
        _TAG + "bool": _scalar(lambda text: {"true": True, "false": False}[text.lower()]),
        _TAG + "int": _scalar(_integer),
        _TAG + "float": _scalar(_number),
        _TAG + "str": _scalar(str),
        _TAG + "seq": _sequence,
        _TAG + "map": _mapping,
        None: yaml.SafeLoader.construct_undefined,
    }
