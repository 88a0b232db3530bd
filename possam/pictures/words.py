"""Vocabularies that people write: on the command line, in a file, or by the name of a benchmark."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from possam.datasets.class_names import read_class_index
from possam.datasets.json_fields import is_text
from possam.runtime.errors import InputError
from possam.runtime.reading import reading

Names = tuple[str, ...]
"""One class: its name and synonyms."""


def parse_words(text: str) -> list[Names]:
    r"""Classes and their synonyms: ``"cat; dog, puppy"`` is ``[("cat",), ("dog", "puppy")]``.

    A backslash before ``;``, ``,`` or a backslash makes it a part of the name. Runs of white space
    become one space; empty pieces, and synonyms that a class has already, are left out. Benchmarks'
    vocabularies repeat names, so two classes may share one (see :func:`repeated_names`).

    Raises:
        InputError: no word at all.
    """
    if not (classes := [names for group in _split(text, ";") if (names := _names(group))]):
        raise InputError('--words: no word is given; write for example "cat; dog, puppy; road"')
    return classes


def _names(group: str) -> Names:
    """The names of one class, each once; escapes are undone."""
    pieces = (_ESCAPED.sub(r"\1", piece) for piece in _split(group, ","))
    return once(" ".join(piece.split()) for piece in pieces)


def once(names: Iterable[str]) -> Names:
    """``names`` without blank ones and without repetitions (of any case)."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name.casefold(), name)
    return tuple(filter(None, found.values()))


_ESCAPED = re.compile(r"\\([;,\\])")


def _split(text: str, separator: str) -> list[str]:
    """The pieces between separators that no backslash escapes; escapes stay as they are."""
    return re.findall(rf"(?:\\.|[^\\{separator}]|\\$)+", text, re.DOTALL)


def repeated_names(vocabulary: Sequence[Names]) -> list[str]:
    """The names of more than one class, sorted; the first of these classes gets the segments."""
    counts = Counter(name.casefold() for names in vocabulary for name in names)
    return sorted(name for name, count in counts.items() if count > 1)


def parse_stuff(text: str, vocabulary: Sequence[Names]) -> list[bool]:
    """Whether each class is a thing: all are, except those that ``text`` (``"road; sky"``) names.

    Raises:
        InputError: a listed name is not one of the vocabulary's.
    """
    listed = parse_words(text) if text.strip() else []
    stuff, known = (
        {name.casefold() for name in chain.from_iterable(classes)}
        for classes in (listed, vocabulary)
    )
    if unknown := ", ".join(sorted(stuff - known)):
        choices = ", ".join(sorted(known))
        raise InputError(f"--stuff: {unknown}: not among the words; valid choices: {choices}")
    return [not any(name.casefold() in stuff for name in names) for names in vocabulary]


def read_words(path: Path) -> list[Names]:
    """The classes of a file: one per line as in :func:`parse_words`, or a class-name file.

    A class-name file has ``id:name,synonym`` on every line (:mod:`possam.datasets.class_names`);
    its order counts, not its ids. Empty lines are left out.

    Raises:
        InputError: unreadable, not UTF-8 text, or without a word.
    """
    try:
        with reading(path, missing="write one class per line into it"):
            content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise InputError(f"{path}: names no class; write one per line, synonyms after commas")
    for number, line in enumerate(content.splitlines(), start=1):
        if not is_text(line.replace("\t", " ")):
            raise InputError(f"{path}: line {number} has a control character; is this a text file?")
    if all(_NUMBERED.match(line) for line in lines):
        return [once(names) for names in read_class_index(path).values()]
    if not all(classes := [_names(line) for line in lines]):
        raise InputError(f"{path}: {lines[classes.index(())]!r} names no class; remove this line")
    return classes


_NUMBERED = re.compile(r"\s*[0-9]+:")
