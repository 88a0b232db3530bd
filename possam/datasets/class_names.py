"""Class-name files (``index:name,synonym,...``, as OpenSeg and ODISE use them) and class tables."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from possam.datasets.json_fields import is_text
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_write
from possam.runtime.reading import reading

_ADDITIONS = {"merged", "other", "stuff"}
VOID_NAME = "invalid_class_id"
_ESCAPED = re.compile(r"\\([,\\])")


def read_class_index(path: Path) -> dict[int, tuple[str, ...]]:
    """Names of each class (the preferred one first) by upstream index, in the file's order.

    Lines named ``invalid_class_id`` (void, and gaps in COCO's ids) are left out. The upstream index
    is the category id for COCO, the label value for ADE20K and PASCAL Context. A comma that belongs
    to a name has a backslash before it, as has a backslash.

    Raises:
        InputError: an unreadable file, a faulty line, an index written twice, or no class.
    """
    try:
        with reading(path, missing="write or fetch it first"):
            lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from error
    classes: dict[int, tuple[str, ...]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        head, colon, tail = line.partition(":")
        if not (colon and re.fullmatch(r"\s*[0-9]{1,18}\s*", head)):
            raise InputError(f"{where}: 'index:name,synonym' is expected, not {line!r}")
        names = tuple(_ESCAPED.sub(r"\1", name).strip() for name in _split(tail))
        if int(head) in classes:
            raise InputError(f"{where}: index {int(head)} is written twice; remove one")
        if not all(names):
            raise InputError(f"{where}: a name is empty; remove the stray comma")
        if not all(map(is_text, names)):
            raise InputError(f"{where}: a name has a tab or control character; remove it")
        classes[int(head)] = names
    classes = {index: names for index, names in classes.items() if names != (VOID_NAME,)}
    if not classes:
        raise InputError(f"{path}: names no class")
    return classes


def write_class_index(path: Path, classes: Mapping[int, Sequence[str]]) -> None:
    """Write what :func:`read_class_index` reads; runs of white space become one space."""
    with atomic_write(path) as stream:
        for index, names in classes.items():
            plain = (" ".join(name.split()) for name in names)
            text = ",".join(re.sub(r"([,\\])", r"\\\1", name) for name in plain)
            stream.write(f"{index}:{text}\n")


def _split(text: str) -> list[str]:
    """The names between the commas that no backslash escapes; escapes stay as they are."""
    pieces, start = [], 0
    for found in re.finditer(r"\\[,\\]|,", text):
        if found[0] == ",":
            pieces.append(text[start : found.start()])
            start = found.end()
    return [*pieces, text[start:]]


def read_label_names(path: Path) -> dict[int, tuple[str, ...]]:
    """As :func:`read_class_index`; InputError unless the indices are 1..K, in order (0 is void)."""
    names = read_class_index(path)
    if list(names) != list(range(1, len(names) + 1)):
        raise InputError(
            f"{path}: the indices of these label maps are 1..K, without gaps; use the class names "
            "of this data set"
        )
    return names


def read_class_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Rows of a CSV table; InputError if it is unreadable or its columns are not ``columns``."""
    try:
        with (
            reading(path, missing="fetch it"),
            open(path, encoding="utf-8-sig", newline="") as stream,
        ):
            header, *rows = list(csv.reader(stream)) or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); save it as CSV in UTF-8") from error
    if tuple(header) != tuple(columns):
        raise InputError(f"{path}: the columns are {header}, {list(columns)} are expected")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise InputError(f"{path}: line {number} has {len(row)} cells, not {len(columns)}")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def name_keys(name: str) -> set[tuple[str, ...]]:
    """What a name, and each of its parts between commas, is compared by.

    Lower case, words in any order, and without COCO's additions: ``floor-other-merged`` is
    ``floor``, ``wall-brick`` is ``brick wall``.
    """
    keys = set()
    for part in (name, *name.split(",")):
        words = sorted(re.findall(r"\w+", part.casefold().replace("_", " ")))
        keys.add(tuple(word for word in words if word not in _ADDITIONS) or tuple(words))
    return keys - {()}


def check_numbering(
    names: Sequence[Iterable[str]], upstream: Sequence[str], path: Path, other: Path
) -> None:
    """Refuse class names that are those of other classes: they are shifted, or in another order.

    Names that upstream does not have are no fault: class-name files rename.

    Args:
        names: of each class, in ``path``; upstream: its name in ``other``, or empty.

    Raises:
        InputError: at least half of the classes have the name of another one.
    """
    ours = [set().union(*map(name_keys, own)) for own in names]
    theirs = [name_keys(name) for name in upstream]
    wrong = [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if b and not a & b]
    moved = [k for k in wrong if any(ours[k] & theirs[other] for other in wrong)]
    if moved and 2 * len(moved) >= len(ours):
        first = moved[0]
        raise InputError(
            f"{path}: {len(moved)} of {len(ours)} classes have the name of another class of "
            f"{other} ({upstream[first]!r} there is {next(iter(names[first]), '')!r} here); its "
            "numbering is shifted, or in another order: correct it"
        )


def seen_classes(
    vocabulary: Sequence[Iterable[str]], training_vocabulary: Sequence[Iterable[str]]
) -> list[bool]:
    """For each class of ``vocabulary``: whether any of its names is also a training name.

    FC-CLIP's rule; names are compared as whole strings, stripped and in lower case.
    """
    known = {name.strip().lower() for names in training_vocabulary for name in names}
    return [any(name.strip().lower() in known for name in names) for names in vocabulary]
