"""The fields of JSON that others wrote: each is checked for its type and range before it is used.

A table of fields (name -> :class:`Field`) names those that are read; an entry may have others.
"""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from possam.runtime.errors import InputError

REMEDY = "correct it, or replace the file by a good one"
_NAME_BYTES = 255
"""Longest file name of common file systems."""


class Field(NamedTuple):
    """What a field must hold: a check of its value, and the same in words."""

    holds: Callable[[Any], bool]
    text: str
    optional: bool = False


def whole(low: int, high: int) -> Field:
    """A whole number in ``low..high``; neither 1.0 nor true is one."""
    return Field(lambda v: type(v) is int and low <= v <= high, f"a whole number in {low}..{high}")


def number(low: float, high: float) -> Field:
    """A number in ``low..high``, which NaN is not."""
    return Field(
        lambda v: type(v) in (int, float) and low <= v <= high,
        f"a number in {low:g}..{high:g}",
    )


def one_of(*types: type, text: str) -> Field:
    """A value of one of the JSON ``types`` (``list``, ``dict``)."""
    return Field(lambda v: type(v) in types, text)


def optional(field: Field) -> Field:
    """The same field, which may be missing."""
    return field._replace(optional=True)


def is_text(value: Any) -> bool:
    """Whether ``value`` is text that UTF-8 can hold, without control characters."""
    return type(value) is str and (value.isprintable() or not any(map(_is_no_character, value)))


def _is_no_character(character: str) -> bool:
    return character < " " or "\x7f" <= character < "\xa0" or "\ud800" <= character <= "\udfff"


def is_file_name(value: Any) -> bool:
    """Whether ``value`` is a file name without folders."""
    return (
        is_text(value)
        and value not in ("", ".", "..")
        and "/" not in value
        and len(value.encode()) <= _NAME_BYTES
    )


def is_file_path(value: Any) -> bool:
    """Whether ``value`` is a file name, perhaps in folders: a path that stays below its folder."""
    return type(value) is str and all(map(is_file_name, value.split("/")))


ID = whole(0, (1 << 63) - 1)
FLAG = Field(lambda v: type(v) is int and v in (0, 1), "0 or 1")
TEXT = Field(is_text, "text")
FILE_PATH = Field(is_file_path, "a plain file name, or a path below the folder")
LIST = one_of(list, text="a list")
OBJECT = one_of(dict, text="an object")


def check_fields(
    entry: Any, fields: Mapping[str, Field], where: str, *, remedy: str = REMEDY
) -> None:
    """Raise an InputError, which begins with ``where``, unless ``entry`` has these ``fields``."""
    if type(entry) is not dict:
        raise InputError(f"{where}: {shown(entry)} is not an object; {remedy}")
    for key, field in fields.items():
        if key not in entry:
            if not field.optional:
                raise InputError(f"{where}: no {key!r}, which is {field.text}; {remedy}")
        elif not field.holds(entry[key]):
            raise InputError(f"{where}: {key} {shown(entry[key])} is not {field.text}; {remedy}")


def shown(value: Any) -> str:
    """``value`` as in Python, shortened, for messages."""
    return reprlib.repr(value)
